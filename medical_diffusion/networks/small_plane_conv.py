"""3 x 3 convolution on planes of a few positions, as one matrix product for each pair of positions that meet.

On the coarsest planes of a UNet most taps of a kernel meet the padding: of the 36 products of a 2 x 2 plane 16 count.
oneDNN computes all of them and reorders its weights first; here nothing is padded, gathered or copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: largest plane, in positions, and least channels in times out for which this form is the faster one (CPU)
MAX_POSITIONS = 4
MIN_CHANNEL_PRODUCT = 2**15
CENTRE = (1, 1)


def prefers_small_plane(x: Tensor, out_channels: int) -> bool:
    """Whether this form is the faster one for maps (n, c, h, w) and as many channels out."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    n, channels, height, width = x.shape
    return n > 1 and height * width <= MAX_POSITIONS and channels * out_channels >= MIN_CHANNEL_PRODUCT


def small_plane_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)`` for a weight (out, c, 3, 3): (n, c, h, w) to (n, out, h, w)."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return _SmallPlaneConv.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))


class _SmallPlaneConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plane = x.shape[2:]
        rows, taps = _rows(x), weight.permute(0, 2, 3, 1)
        out = torch.addmm(bias, rows.flatten(0, 1), taps[:, *CENTRE].T).view(*rows.shape[:2], -1)
        for p, q, tap in _meetings(*ctx.plane):
            out[:, p].addmm_(rows[:, q], taps[:, *tap].T)
        return out.unflatten(1, ctx.plane).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, grads, taps = _rows(x), _rows(grad), weight.permute(0, 2, 3, 1)
        flat = grads.flatten(0, 1)
        grad_rows = torch.mm(flat, taps[:, *CENTRE]).view(rows.shape)
        grad_taps = torch.zeros(taps.shape, dtype=taps.dtype)
        grad_taps[:, *CENTRE].addmm_(flat.T, rows.flatten(0, 1))
        for p, q, tap in _meetings(*ctx.plane):
            grad_rows[:, q].addmm_(grads[:, p], taps[:, *tap])
            grad_taps[:, *tap].addmm_(grads[:, p].T, rows[:, q])
        grad_x = grad_rows.unflatten(1, ctx.plane).permute(0, 3, 1, 2)
        return grad_x, grad_taps.permute(0, 3, 1, 2), flat.sum(0)


def _rows(x: Tensor) -> Tensor:
    """(n, c, h, w) as (n, h w, c): a view where the map is channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _meetings(height: int, width: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Output position, input position and tap of each product away from the centre of the kernel."""
    positions = list(itertools.product(range(height), range(width)))
    for (p, (i, j)), (q, (k, m)) in itertools.permutations(enumerate(positions), 2):
        if abs(k - i) <= 1 and abs(m - j) <= 1:
            yield p, q, (k - i + 1, m - j + 1)
