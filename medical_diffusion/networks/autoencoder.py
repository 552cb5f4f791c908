"""The VQ-GAN's autoencoder (Medical Diffusion, stage 1), for volumes and, at depth 1, for images.

Encoder: 3³ convolution 1 → 16; per halving a strided 4³ convolution that doubles the channels and a residual block;
normalisation, SiLU and a 1³ convolution to the latent channels. Decoder: a 1³ convolution; per doubling a transposed 4³
convolution and two residual blocks, one width step wider than a mirror of the encoder (compression 4: 64 → 64 → 32); a
3³ convolution to the image. No tanh, no attention. The compression is set per axis: an axis that is already done is
carried on with kernel 3 and stride 1.

Diffusion runs on the encoder's output *before* quantisation, brought to about [-1, 1] by :meth:`encode_latents`; its
inverse maps back, quantises to the nearest code and decodes. The numbers that whiten are buffers of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.networks.blocks import NormActConv, ResidualBlock
from medical_diffusion.networks.conv import Convolution, PaddingMode, TransposedConvolution, channels_last
from medical_diffusion.networks.quantizer import BottleneckOutput, VectorQuantizer
from medical_diffusion.shapes import effective_compression, latent_size, per_axis

LatentNormalization = Literal["codebook_range", "standardize"]
LATENT_NORMALIZATIONS = ("codebook_range", "standardize")


class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder: (B, in_channels, H, W, D) → the same shape.

    Args:
        image_size: (H, W, D), or one number for all three; divisible by the compression. Depth 1 makes it 2D.
        in_channels: channels of the image.
        channels: width of the first convolution; doubled per halving (paper: 16).
        compression: factor per axis, a power of two (paper: 4; 2 for 64³); axes of size 1 are never compressed.
        latent_channels: channels of the latent (paper: 8).
        bottleneck: module with ``forward(h) -> BottleneckOutput``, ``quantize(h)`` and ``code_range()``; by default
            ``VectorQuantizer(16384, latent_channels)``.
        norm_groups: groups of the group normalisations. The published 32 make it an instance normalisation at 32
            channels, which removes the local brightness that CT lives on.
        latent_normalization: ``"codebook_range"`` maps minimum and maximum of the codes in use to [-1, 1] (paper);
            ``"standardize"`` gives each channel of the training latents mean 0 and standard deviation 1.
        padding_mode: border of the convolutions, ``"replicate"`` (paper) or ``"zeros"``.

    Raises:
        UserError: the image size is not divisible by the compression, or an option is out of range.
    """

    latent_shift: Tensor
    latent_scale: Tensor
    latent_statistics_set: Tensor

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int = 1,
        channels: int = 16,
        compression: int | Sequence[int] = 4,
        latent_channels: int = 8,
        bottleneck: nn.Module | None = None,
        norm_groups: int = 8,
        latent_normalization: LatentNormalization = "codebook_range",
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        super().__init__()
        if latent_normalization not in LATENT_NORMALIZATIONS:
            raise UserError(
                "latent_normalization must be known",
                latent_normalization,
                did_you_mean(str(latent_normalization), LATENT_NORMALIZATIONS),
            )
        self.image_size = per_axis(image_size, "image_size")
        asked = per_axis(compression, "compression")
        if any(c & (c - 1) for c in asked):
            raise UserError("compression must be a power of two along every axis", compression)
        self.compression = effective_compression(self.image_size, asked)
        self.latent_size = latent_size(self.image_size, self.compression)
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.latent_normalization = latent_normalization
        strides = _strides(self.compression)
        self.encoder = _encoder(
            self.image_size, in_channels, channels, strides, latent_channels, norm_groups, padding_mode
        )
        self.bottleneck: Any = VectorQuantizer(code_dim=latent_channels) if bottleneck is None else bottleneck
        self.decoder = _decoder(
            self.latent_size, in_channels, channels, strides[::-1], latent_channels, norm_groups, padding_mode
        )
        statistics = (1, latent_channels, 1, 1, 1)
        self.register_buffer("latent_shift", torch.zeros(statistics))
        self.register_buffer("latent_scale", torch.ones(statistics))
        self.register_buffer("latent_statistics_set", torch.zeros((), dtype=torch.bool))

    def encode(self, x: Tensor) -> Tensor:
        """Latent before the bottleneck: (B, in_channels, H, W, D) → (B, latent_channels, *latent_size)."""
        self._check(x, "image", (self.in_channels, *self.image_size))
        return self.encoder(channels_last(x))

    def decode(self, h: Tensor) -> Tensor:
        """Image of a latent, without quantisation: (B, latent_channels, *latent_size) → (B, in_channels, H, W, D)."""
        self._check(h, "latent", (self.latent_channels, *self.latent_size))
        return self.decoder(channels_last(h))

    def reconstruct(self, x: Tensor) -> tuple[Tensor, BottleneckOutput]:
        """Reconstruction and what the bottleneck says about it; in training mode this updates the codebook."""
        bottleneck = self.bottleneck(self.encode(x))
        return self.decode(bottleneck.latents), bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of an image through the bottleneck; shape as the input."""
        return self.reconstruct(x)[0]

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
            raise UserError(
                "latents must vary in every channel before they can be whitened",
                f"scale {scale.flatten().tolist()}",
                "Train the autoencoder for longer, or use latent_normalization 'codebook_range'",
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
        """Image of whitened latents: un-whiten, quantise to the nearest code, decode.

        Raises:
            UserError: the latent statistics have not been set.
        """
        self._require_statistics()
        return self.decode(self.bottleneck.quantize(z.float() * self.latent_scale + self.latent_shift))

    def _require_statistics(self) -> None:
        if not bool(self.latent_statistics_set):
            raise UserError(
                "the latent statistics must be set before latents are whitened",
                "an autoencoder whose stage 1 is not finished",
                "Call set_latent_statistics, or load a finished autoencoder",
            )

    @staticmethod
    def _check(x: Tensor, name: str, shape: tuple[int, ...]) -> None:
        if tuple(x.shape[1:]) != shape:
            raise UserError(
                f"the {name} must be (B, {', '.join(map(str, shape))})",
                tuple(x.shape),
                "The network is built for one image_size: build another, or crop or pad the images",
            )


def _strides(compression: Sequence[int]) -> list[tuple[int, int, int]]:
    """Strides of the halvings, the finest first: (4, 4, 2) → (2, 2, 2), (2, 2, 1)."""
    levels = max(compression).bit_length() - 1
    return [per_axis([2 if c >> level > 1 else 1 for c in compression], "stride") for level in range(levels)]


def _kernel(stride: Sequence[int]) -> tuple[int, int, int]:
    """4 along an axis that is resampled, 3 along one that is not."""
    return per_axis([4 if s == 2 else 3 for s in stride], "kernel_size")


def _encoder(
    size: tuple[int, int, int],
    in_channels: int,
    channels: int,
    strides: Sequence[tuple[int, int, int]],
    latent_channels: int,
    norm_groups: int,
    padding_mode: PaddingMode,
) -> nn.Sequential:
    layers: list[nn.Module] = [Convolution(size, in_channels, channels, 3, padding_mode=padding_mode)]
    for stride in strides:
        down = Convolution(size, channels, 2 * channels, _kernel(stride), stride, padding_mode)
        size, channels = down.out_size, 2 * channels
        layers += [down, ResidualBlock(size, channels, norm_groups, padding_mode)]
    layers.append(NormActConv(size, channels, latent_channels, norm_groups, kernel_size=1))
    return nn.Sequential(*layers)


def _decoder(
    size: tuple[int, int, int],
    out_channels: int,
    channels: int,
    strides: Sequence[tuple[int, int, int]],
    latent_channels: int,
    norm_groups: int,
    padding_mode: PaddingMode,
) -> nn.Sequential:
    width = channels * 2 ** len(strides)
    layers: list[nn.Module] = [Convolution(size, latent_channels, width, 1)]
    for level, stride in enumerate(strides):
        out = channels * 2 ** (len(strides) - level)
        up = TransposedConvolution(size, width, out, _kernel(stride), stride, padding_mode)
        size, width = up.out_size, out
        layers += [up, *(ResidualBlock(size, width, norm_groups, padding_mode) for _ in range(2))]
    layers.append(Convolution(size, width, out_channels, 3, padding_mode=padding_mode))
    return nn.Sequential(*layers)


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
