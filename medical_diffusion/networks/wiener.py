"""The part of denoising that is linear: the Wiener filter of the latents' spectrum.

Were latents Gaussian, the mean of ``x_0`` given ``x_t = a x_0 + s noise`` would be a filter, ``a P / (a² P + s²)`` at a
spatial frequency of power ``P`` (Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series",
1949). Latents are not, yet much of what can be predicted is this filter, at high noise nearly all (Wang and Vastola,
"The Hidden Linear Structure in Score-Based Models and its Application", 2023), and what it leaves has no correlation
with its input. A network that is given it learns the remainder alone. With ``P = 1`` it is the skip of v-prediction
(Salimans and Ho 2022) and of Karras et al. ("Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
section 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

BANDS_PER_OCTAVE = 2
OCTAVES = 7
BANDS = 1 + BANDS_PER_OCTAVE * OCTAVES
"""Frequencies are taken together: zero, then half octaves up to the highest, with all below the seventh in one."""

FEWEST_FOR_MEAN = 16
"""Of fewer latents no mean is taken: it would be their picture."""


class WienerSkip(nn.Module):
    """The best linear prediction from a noisy latent, of what a network of the scheduler's prediction type predicts.

    Frequencies are those of the discrete cosine transform along every axis, which needs no periodic border. In each
    band channels are turned to uncorrelated ones, since those that code neighbouring voxels differ in fine detail
    alone. Mean, power and directions are buffers: 0, 1 and the channels as they are before :meth:`fit`.

    Args:
        channels: of the latent.
        size: (h, w, d) of the latent.
        scheduler: a sampler of :mod:`medical_diffusion.diffusion`: its noise levels and prediction type.
    """

    mean: Tensor  # (channels, h, w, d)
    power: Tensor  # (BANDS, channels): about the mean
    directions: Tensor  # (BANDS, channels, channels): a column for each power
    signal: Tensor
    noise: Tensor

    def __init__(self, channels: int, size: Sequence[int], scheduler: Any) -> None:
        super().__init__()
        self.prediction_type: str = scheduler.prediction_type
        self.register_buffer("mean", torch.zeros(channels, *per_axis(size, "size")))
        self.register_buffer("power", torch.ones(BANDS, channels))
        self.register_buffer("directions", torch.eye(channels).repeat(BANDS, 1, 1))
        # configuration, not state, as in the scheduler
        self.register_buffer("signal", scheduler.sqrt_alphas_cumprod.clone(), persistent=False)
        self.register_buffer("noise", scheduler.sqrt_one_minus_alphas_cumprod.clone(), persistent=False)

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Take mean and powers from clean latents, batches (B, channels, h, w, d), read once as a stream.

        Raises:
            UserError: no latents, or latents of another shape.
        """
        (channels, *size), device = self.mean.shape, self.mean.device
        bands = _bands(tuple(size), device).flatten()
        members = [(bands == band).nonzero().flatten() for band in range(BANDS)]
        count, total = 0, torch.zeros(len(bands), channels, dtype=torch.float64, device=device)
        products = torch.zeros(BANDS, channels, channels, dtype=torch.float64, device=device)
        for z in latents:
            self._check(z)
            amplitudes = _cosine_transform(z.to(device).double(), inverse=False).movedim(1, -1).flatten(1, 3)
            count, total = count + len(z), total + amplitudes.sum(0)
            for band, member in enumerate(members):
                values = amplitudes[:, member].flatten(0, 1)
                products[band] += values.T @ values
        if not count:
            raise UserError("the power of the latents needs latents", "none", "Pass those of the training set")
        mean = total / count if count >= FEWEST_FOR_MEAN else torch.zeros_like(total)
        independent = count - 1 if count >= FEWEST_FOR_MEAN else count
        for band, member in enumerate(members):
            if len(member):
                around = products[band] - count * mean[member].T @ mean[member]
                power, directions = torch.linalg.eigh(around / (independent * len(member)))
                self.power[band], self.directions[band] = power.clamp_min(0), directions
        coefficients = mean.T.reshape(1, channels, *size)
        self.mean.copy_(_cosine_transform(coefficients, inverse=True)[0])

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Filter noisy latents (B, channels, h, w, d) of ``timesteps`` (B,) in [0, T); in float32 at least.

        Raises:
            UserError: latents of another shape.
        """
        self._check(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            a, s = (table[timesteps.long()].view(-1, 1, 1, 1, 1).to(x.dtype) for table in (self.signal, self.noise))
            bands = _bands(tuple(x.shape[2:]), x.device)
            mean, directions = self.mean.to(x.dtype), self.directions.to(x.dtype)[bands]
            power = self.power.to(x.dtype)[bands].movedim(-1, 0)
            of_noise = s.square() + a.square() * power
            if self.prediction_type == "epsilon":
                offset, gain = torch.zeros_like(mean), s / of_noise
            elif self.prediction_type == "sample":
                offset, gain = mean, a * power / of_noise
            else:
                offset, gain = -s * mean, a * s * (1 - power) / of_noise
            y = torch.einsum("bchwd,hwdck->bkhwd", _cosine_transform(x - a * mean, inverse=False), directions)
            y = torch.einsum("bkhwd,hwdck->bchwd", gain * y, directions)
            return offset + _cosine_transform(y, inverse=True)

    def _check(self, z: Tensor) -> None:
        if z.shape[1:] != self.mean.shape:
            raise UserError(
                f"latents must be (B, {', '.join(map(str, self.mean.shape))}), as the linear skip was built for",
                tuple(z.shape),
                "Build it for this size, or leave it out",
            )


def _cosine_transform(x: Tensor, inverse: bool) -> Tensor:
    """Orthonormal discrete cosine transform (type II) of (B, C, h, w, d) along h, w and d, or its inverse."""
    for axis, length in enumerate(x.shape[2:], start=2):
        if length > 1:
            matrix = _cosines(length, x.device).to(x.dtype)
            x = torch.movedim(torch.movedim(x, axis, -1) @ (matrix if inverse else matrix.T), -1, axis)
    return x


@lru_cache(maxsize=64)
def _cosines(length: int, device: torch.device) -> Tensor:
    """Orthonormal matrix (length, length) of type II, frequency first, float64."""
    frequency = torch.arange(length, dtype=torch.float64)[:, None]
    position = torch.arange(length, dtype=torch.float64) + 0.5
    matrix = torch.cos(math.pi / length * frequency * position) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


@lru_cache(maxsize=64)
def _bands(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Band of each frequency (h, w, d): of the root mean square of its shares of the highest, axis by axis."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in size), indexing="ij")
    mean = torch.stack(axes).square().sum(0) / max(1, sum(n > 1 for n in size))
    octaves = torch.log2(mean.clamp_min(torch.finfo(torch.float64).tiny)) / 2 + OCTAVES
    bands = 1 + (octaves * BANDS_PER_OCTAVE).floor().clamp(0, BANDS - 2)
    return torch.where(mean == 0, 0, bands).long().to(device)
