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

LatentNormalization = Literal["codebook_range", "standardize"]
LATENT_NORMALIZATIONS = ("codebook_range", "standardize")


class LatentCodec(nn.Module, ABC):
    """Encoder, bottleneck and decoder: (B, in_channels, H, W, D) → the same shape.

    Args:
        image_size: (H, W, D), or one number for all three; divisible by the compression.
        in_channels: channels of the image.
        compression: factor per axis, a power of two; axes of size 1 are never compressed.
        latent_channels: channels of the latent.
        bottleneck: a :class:`~medical_diffusion.networks.bottleneck.Bottleneck`.
        latent_normalization: ``"codebook_range"`` maps minimum and maximum of the codes in use to [-1, 1] (paper);
            ``"standardize"`` gives each channel of the training latents mean 0 and standard deviation 1.

    Raises:
        UserError: the image size is not divisible by the compression, or an option is out of range.
    """

    latent_shift: Tensor
    latent_scale: Tensor
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
            latents: batches of :meth:`encode` over the training set, needed by ``"standardize"`` only. They are read
                once, as a stream.

        Raises:
            UserError: no latents where they are needed, or latents that do not vary.
        """
        if self.latent_normalization == "codebook_range":
            low, high = self.bottleneck.code_range()
            shift, scale = (high + low) / 2, (high - low) / 2
        else:
            shift, scale = _channel_statistics(() if latents is None else latents)
            shift, scale = shift.view(1, -1, 1, 1, 1), scale.view(1, -1, 1, 1, 1)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            remedy = "Train the autoencoder for longer"
            if self.latent_normalization == "standardize" and hasattr(self.bottleneck, "code_range"):
                remedy += ", or use latent_normalization 'codebook_range'"
            raise UserError(
                "latents must vary in every channel before they can be whitened",
                f"scale {scale.flatten().tolist()}",
                remedy,
            )
        self.latent_shift.copy_(shift.expand_as(self.latent_shift))
        self.latent_scale.copy_(scale.expand_as(self.latent_scale))
        self.latent_statistics_set.fill_(True)

    def encode_latents(self, x: Tensor) -> Tensor:
        """Whitened latents for diffusion, about [-1, 1]: (B, in_channels, H, W, D) → (B, latent_channels, ...).

        Raises:
            UserError: the latent statistics have not been set.
        """
        self._require_statistics()
        return (self.encode(x).float() - self.latent_shift) / self.latent_scale

    def decode_latents(self, z: Tensor) -> Tensor:
        """Image of whitened latents: un-whiten, pass the bottleneck (the nearest code of a quantiser), decode.

        Raises:
            UserError: the latent statistics have not been set.
        """
        self._require_statistics()
        return self.decode(self.bottleneck.to_decoder(z.float() * self.latent_scale + self.latent_shift))

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


def _channel_statistics(latents: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel over a stream of (B, C, ...) batches, summed in float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for h in latents:
        values = h.detach().movedim(1, 0).flatten(1).double()
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    if not count:
        raise UserError("latent_normalization 'standardize' needs the latents of the training set", "no latents")
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()
