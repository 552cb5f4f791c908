"""Convolution as one matrix product, for layers with far more weights than voxels (CPU).

The last layers of a patch discriminator slide 4³ kernels with millions of weights over a few hundred positions. oneDNN
then spends its time on reordering the weights at each call. Weights in the channels-last layout already are the matrix
(out_channels, taps · in_channels), so gathering the windows of the small map, (positions, taps · in_channels), and one
product do the same work in about half the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: how many times the weights must outnumber the voxels of input and output
MIN_RATIO = 8


def prefers_matrix(x: Tensor, weight: Tensor, out_size: Sequence[int]) -> bool:
    """Whether the matrix product is the faster form: float32 on a CPU, weights that far outnumber the voxels."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    voxels = x.numel() + x.shape[0] * torch.Size(out_size).numel() * weight.shape[0]
    return weight.numel() > MIN_RATIO * voxels


def matrix_conv(
    x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int], border: Sequence[int], out_size: Sequence[int]
) -> Tensor:
    """``conv(x, weight, bias, stride, border)`` with zero padding, in any number of spatial axes; channels last."""
    windows = _Windows.apply(x, weight.shape[2:], tuple(stride), tuple(border), tuple(out_size))
    matrix = weight.movedim(1, -1).reshape(weight.shape[0], -1)
    return torch.addmm(bias, windows, matrix.T).view(x.shape[0], *out_size, -1).movedim(-1, 1)


class _Windows(torch.autograd.Function):
    """Zero-padded windows of a map (B, C, *size) as rows (B · positions, taps · C)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int],
        border: Sequence[int],
        out_size: Sequence[int],
    ) -> Tensor:
        ctx.shape, ctx.geometry, ctx.border = x.shape, (kernel, stride, out_size), border
        padded = F.pad(x.movedim(1, -1), [0, 0, *(p for p in reversed(border) for _ in range(2))])
        windows = torch.stack(list(_taps(padded, kernel, stride, out_size)), dim=-2)
        return windows.view(windows.shape[:-2].numel(), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        batch, channels, *size = ctx.shape
        columns = grad.view(batch, *ctx.geometry[2], -1, channels)
        padded = grad.new_zeros(batch, *(n + 2 * p for n, p in zip(size, ctx.border, strict=True)), channels)
        for tap, voxels in enumerate(_taps(padded, *ctx.geometry)):
            voxels += columns[..., tap, :]
        for axis, (n, p) in enumerate(zip(size, ctx.border, strict=True), start=1):
            padded = padded.narrow(axis, p, n)
        return padded.contiguous().movedim(-1, 1), None, None, None, None


def _taps(padded: Tensor, kernel: Sequence[int], stride: Sequence[int], out_size: Sequence[int]) -> Iterator[Tensor]:
    """For each tap of the kernel, the voxels (B, *out_size, C) of a padded map (B, *size, C) that it meets (views)."""
    for offsets in itertools.product(*[range(k) for k in kernel]):
        index = [slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offsets, stride, out_size, strict=True)]
        yield padded[(slice(None), *index)]
