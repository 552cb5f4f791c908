"""Encoder and decoder of the VQ-GAN (Medical Diffusion, stage 1).

Encoder: 3³ convolution 1 → 16; per halving a strided 4³ convolution that doubles the channels and a residual block;
normalisation, SiLU and a 1³ convolution to the latent channels. Decoder: a 1³ convolution; per doubling a transposed 4³
convolution and two residual blocks, one width step wider than a mirror of the encoder (compression 4: 64 → 64 → 32); a
3³ convolution to the image. No tanh, no attention. An axis that is already done is carried on with kernel 3 and
stride 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from medical_diffusion.networks.blocks import NormActConv, ResidualBlock
from medical_diffusion.networks.conv import Convolution, PaddingMode, TransposedConvolution
from medical_diffusion.shapes import per_axis

Size = tuple[int, int, int]


class Decoder(NamedTuple):
    """A decoder, and where in it the map of half resolution is.

    Attributes:
        layers: latent → image.
        half_index: the layer whose output has half resolution; None without any halving.
        half_channels: channels of that output.
    """

    layers: nn.Sequential
    half_index: int | None
    half_channels: int


def encoder(
    size: Size,
    in_channels: int,
    channels: int,
    strides: Sequence[Size],
    out_channels: int,
    norm_groups: int,
    padding_mode: PaddingMode,
) -> nn.Sequential:
    """Layers (B, in_channels, *size) → (B, out_channels, ...); ``strides`` are those of the halvings, finest first."""
    layers: list[nn.Module] = [Convolution(size, in_channels, channels, 3, padding_mode=padding_mode)]
    for stride in strides:
        down = Convolution(size, channels, 2 * channels, _kernel(stride), stride, padding_mode)
        size, channels = down.out_size, 2 * channels
        layers += [down, ResidualBlock(size, channels, norm_groups, padding_mode)]
    layers.append(NormActConv(size, channels, out_channels, norm_groups, kernel_size=1))
    return nn.Sequential(*layers)


def decoder(
    size: Size,
    out_channels: int,
    channels: int,
    strides: Sequence[Size],
    latent_channels: int,
    norm_groups: int,
    padding_mode: PaddingMode,
) -> Decoder:
    """Layers (B, latent_channels, *size) → (B, out_channels, ...); ``strides`` are the encoder's, finest first."""
    width = channels * 2 ** len(strides)
    layers: list[nn.Module] = [Convolution(size, latent_channels, width, 1)]
    half_index, half_channels = None, width
    for level in reversed(range(len(strides))):
        if level == 0:
            half_index, half_channels = len(layers) - 1, width
        out = channels * 2 ** (level + 1)
        up = TransposedConvolution(size, width, out, _kernel(strides[level]), strides[level], padding_mode)
        size, width = up.out_size, out
        layers += [up, *(ResidualBlock(size, width, norm_groups, padding_mode) for _ in range(2))]
    layers.append(Convolution(size, width, out_channels, 3, padding_mode=padding_mode))
    return Decoder(nn.Sequential(*layers), half_index, half_channels)


def _kernel(stride: Sequence[int]) -> Size:
    """4 along an axis that is resampled, 3 along one that is not."""
    return per_axis([4 if s == 2 else 3 for s in stride], "kernel_size")
