"""What stage 2 and the evaluation know of an autoencoder: images to whitened latents and back.

Diffusion runs on what the bottleneck calls its latent (*before* quantisation; a posterior's mean), brought to about
[-1, 1] by :meth:`LatentCodec.encode_latents`; its inverse maps back, passes the bottleneck again (a quantiser takes the
nearest code) and decodes. The numbers that whiten are buffers of the checkpoint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.networks.bottleneck import BottleneckOutput
from medical_diffusion.shapes import effective_compression, latent_size, per_axis

LatentNormalization = Literal["codebook_range", "standardize", "whiten"]
LATENT_NORMALIZATIONS = ("codebook_range", "standardize", "whiten")

MIN_EIGENVALUE = 1e-3
"""Least eigenvalue of the channels' correlations (their mean is 1) that whitening divides by: a direction that hardly
varies carries nothing, and would come out as noise of full strength."""


class LatentCodec(nn.Module, ABC):
    """Encoder, bottleneck and decoder: (B, in_channels, H, W, D) → the same shape.

    Args:
        image_size: (H, W, D), or one number for all three; divisible by the compression.
        in_channels: channels of the image.
        compression: factor per axis, a power of two; axes of size 1 are never compressed.
        latent_channels: channels of the latent.
        bottleneck: a :class:`~medical_diffusion.networks.bottleneck.Bottleneck`.
        latent_normalization: ``"codebook_range"`` maps minimum and maximum of the codes in use to [-1, 1] (paper);
            ``"standardize"`` gives each channel of the training latents mean 0 and standard deviation 1; ``"whiten"``
            also makes the channels uncorrelated (ZCA of their correlations: Kessy et al. 2018, "Optimal whitening and
            decorrelation"). Fine detail is what neighbouring channels differ in: where they are alike it is
            a small part of standardised latents, and noise hides it at all but the last steps.

    Raises:
        UserError: the image size is not divisible by the compression, or an option is out of range.
    """

    latent_shift: Tensor
    latent_scale: Tensor
    latent_whitening: Tensor
    latent_coloring: Tensor
    latent_statistics_set: Tensor

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int,
        compression: int | Sequence[int],
        latent_channels: int,
        bottleneck: nn.Module,
        latent_normalization: LatentNormalization,
    ) -> None:
        super().__init__()
        if latent_normalization not in LATENT_NORMALIZATIONS:
            raise UserError(
                "latent_normalization must be known",
                latent_normalization,
                did_you_mean(str(latent_normalization), LATENT_NORMALIZATIONS),
            )
        if latent_normalization == "codebook_range" and not hasattr(bottleneck, "code_range"):
            raise UserError(
                "latent_normalization 'codebook_range' needs a bottleneck with a codebook",
                type(bottleneck).__name__,
                "Use latent_normalization 'standardize'",
            )
        self.image_size = per_axis(image_size, "image_size")
        asked = per_axis(compression, "compression")
        if any(c & (c - 1) for c in asked):
            raise UserError("compression must be a power of two along every axis", compression)
        self.compression = effective_compression(self.image_size, asked)
        self.latent_size = latent_size(self.image_size, self.compression)
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.latent_normalization = latent_normalization
        self.bottleneck: Any = bottleneck
        statistics = (1, latent_channels, 1, 1, 1)
        self.register_buffer("latent_shift", torch.zeros(statistics))
        self.register_buffer("latent_scale", torch.ones(statistics))
        if latent_normalization == "whiten":
            self.register_buffer("latent_whitening", torch.eye(latent_channels))
            self.register_buffer("latent_coloring", torch.eye(latent_channels))
        self.register_buffer("latent_statistics_set", torch.zeros((), dtype=torch.bool))

    @abstractmethod
    def moments(self, x: Tensor) -> Tensor:
        """What the bottleneck receives: (B, in_channels, H, W, D) → (B, moments x latent_channels, *latent_size)."""

    @abstractmethod
    def decode_all(self, h: Tensor) -> list[Tensor]:
        """Images of a latent at every resolution that the decoder gives, the full one first."""

    def encode(self, x: Tensor) -> Tensor:
        """What diffusion learns, not whitened: (B, in_channels, H, W, D) → (B, latent_channels, *latent_size)."""
        return self.bottleneck.encode(self.moments(x))

    def decode(self, h: Tensor) -> Tensor:
        """Image of a latent as it is: (B, latent_channels, *latent_size) → (B, in_channels, H, W, D)."""
        return self.decode_all(h)[0]

    def reconstruct(self, x: Tensor) -> tuple[list[Tensor], BottleneckOutput]:
        """Reconstructions, full resolution first, and what the bottleneck says about it.

        In training mode this updates a codebook and draws from a posterior.
        """
        bottleneck = self.bottleneck(self.moments(x))
        return self.decode_all(bottleneck.latents), bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of an image through the bottleneck; shape as the input."""
        return self.reconstruct(x)[0][0]

    @torch.no_grad()
    def set_latent_statistics(self, latents: Iterable[Tensor] | None = None) -> None:
        """Fix the numbers that whiten the latents; call once, at the end of stage 1.

        Args:
            latents: batches of :meth:`encode` over the training set, needed by ``"standardize"`` and ``"whiten"``. They
                are read once, as a stream.

        Raises:
            UserError: no latents where they are needed, or latents that do not vary.
        """
        if self.latent_normalization == "codebook_range":
            low, high = self.bottleneck.code_range()
            shift, scale = (high + low) / 2, (high - low) / 2
        else:
            mean, covariance = _channel_statistics(() if latents is None else latents, self.latent_normalization)
            deviation = covariance.diagonal().clamp_min(0).sqrt()
            shift, scale = (t.float().view(1, -1, 1, 1, 1) for t in (mean, deviation))
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            remedy = "Train the autoencoder for longer"
            if self.latent_normalization != "codebook_range" and hasattr(self.bottleneck, "code_range"):
                remedy += ", or use latent_normalization 'codebook_range'"
            raise UserError(
                "latents must vary in every channel before they can be whitened",
                f"scale {scale.flatten().tolist()}",
                remedy,
            )
        self.latent_shift.copy_(shift.expand_as(self.latent_shift))
        self.latent_scale.copy_(scale.expand_as(self.latent_scale))
        if self.latent_normalization == "whiten":
            eigenvalues, directions = torch.linalg.eigh(covariance / torch.outer(deviation, deviation))
            root = eigenvalues.clamp_min(MIN_EIGENVALUE).sqrt()
            self.latent_whitening.copy_(directions / root @ directions.T)
            self.latent_coloring.copy_(directions * root @ directions.T)
        self.latent_statistics_set.fill_(True)

    def encode_latents(self, x: Tensor) -> Tensor:
        """Whitened latents for diffusion, about [-1, 1]: (B, in_channels, H, W, D) → (B, latent_channels, ...).

        Raises:
            UserError: the latent statistics have not been set.
        """
        self._require_statistics()
        z = (self.encode(x).float() - self.latent_shift) / self.latent_scale
        return _mixed(z, self.latent_whitening) if self.latent_normalization == "whiten" else z

    def decode_latents(self, z: Tensor) -> Tensor:
        """Image of whitened latents: un-whiten, pass the bottleneck (the nearest code of a quantiser), decode.

        Raises:
            UserError: the latent statistics have not been set.
        """
        self._require_statistics()
        z = z.float()
        if self.latent_normalization == "whiten":
            z = _mixed(z, self.latent_coloring)
        return self.decode(self.bottleneck.to_decoder(z * self.latent_scale + self.latent_shift))

    def _require_statistics(self) -> None:
        if not bool(self.latent_statistics_set):
            raise UserError(
                "the latent statistics must be set before latents are whitened",
                "an autoencoder whose stage 1 is not finished",
                "Call set_latent_statistics, or load a finished autoencoder",
            )

    def _check_image(self, x: Tensor) -> None:
        _check(x, "image", (self.in_channels, *self.image_size))

    def _check_latent(self, h: Tensor) -> None:
        _check(h, "latent", (self.latent_channels, *self.latent_size))


def _check(x: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise UserError(
            f"the {name} must be (B, {', '.join(map(str, shape))})",
            tuple(x.shape),
            "The network is built for one image_size: build another, or crop or pad the images",
        )


def _mixed(z: Tensor, matrix: Tensor) -> Tensor:
    """Channels of (B, C, h, w, d) mixed by a matrix (C, C)."""
    return torch.einsum("kc,bchwd->bkhwd", matrix, z)


def _channel_statistics(latents: Iterable[Tensor], normalization: str) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the channels over a stream of (B, C, ...) batches, float64."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for h in latents:
        values = h.detach().movedim(1, 0).flatten(1).double()
        count += values.shape[1]
        total = total + values.sum(1)
        products = products + values @ values.T
    if not count:
        raise UserError(f"latent_normalization '{normalization}' needs the latents of the training set", "no latents")
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)
