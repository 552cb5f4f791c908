"""Encoder and decoder of Medfusion's autoencoder (Müller-Franzes et al. 2023).

Widths 64-128-256-512 by level, the full resolution included: 13.5 M parameters where 13.3 M are published. Encoder: a
3³ convolution to the first width; per level a residual block of two 3³ convolutions, the first of which sets the
level's width, and between levels a 3³ convolution of stride 2; normalisation, SiLU and a 1³ convolution to the latent's
moments. Decoder: a 3³ convolution and a residual block at the coarsest level; per doubling nearest upsampling with a 3³
convolution to the next width and a residual block; a 3³ convolution to the image. Group normalisation, SiLU, no
attention. At depth 1 every 3³ is 3 x 3.

A narrow network gets fewer groups, so that each has two channels at least: the full resolution is normalised too, where
a single channel of a smooth image can be constant in bfloat16, and a constant group multiplies gradients by
``1 / sqrt(eps)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medical_diffusion.networks.architecture_vqgan import Decoder, Size
from medical_diffusion.networks.blocks import NormActConv, ResidualBlock
from medical_diffusion.networks.conv import Convolution, PaddingMode, UpsamplingConvolution

MULTIPLIERS = (1, 2, 4, 8)
"""Width of each level over that of the first; levels beyond stay at the last."""


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
    norm_groups = _groups(norm_groups, channels)
    layers: list[nn.Module] = [
        Convolution(size, in_channels, channels, 3, padding_mode=padding_mode),
        ResidualBlock(size, channels, norm_groups, padding_mode),
    ]
    width = channels
    for level, stride in enumerate(strides, start=1):
        down = Convolution(size, width, width, 3, stride, padding_mode)
        size, after = down.out_size, _width(channels, level)
        layers += [down, ResidualBlock(size, width, norm_groups, padding_mode, out_channels=after)]
        width = after
    layers.append(NormActConv(size, width, out_channels, norm_groups, kernel_size=1))
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
    width, norm_groups = _width(channels, len(strides)), _groups(norm_groups, channels)
    layers: list[nn.Module] = [
        Convolution(size, latent_channels, width, 3, padding_mode=padding_mode),
        ResidualBlock(size, width, norm_groups, padding_mode),
    ]
    half_index, half_channels = None, width
    for level in reversed(range(len(strides))):
        if level == 0:
            half_index, half_channels = len(layers) - 1, width
        out = _width(channels, level)
        up = UpsamplingConvolution(size, width, out, strides[level], padding_mode=padding_mode)
        size, width = up.out_size, out
        layers += [up, ResidualBlock(size, width, norm_groups, padding_mode)]
    layers.append(Convolution(size, width, out_channels, 3, padding_mode=padding_mode))
    return Decoder(nn.Sequential(*layers), half_index, half_channels)


def _groups(norm_groups: int, channels: int) -> int:
    return max(1, min(norm_groups, channels // 2))


def _width(channels: int, level: int) -> int:
    return channels * MULTIPLIERS[min(level, len(MULTIPLIERS) - 1)]
