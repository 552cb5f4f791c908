"""Residual block: ``x + conv(silu(norm(conv(silu(norm(x))))))`` with the activations recomputed, not stored.

Group normalisation, SiLU and padding cost little against the convolution behind them, but kept for the backward pass
they are three more maps of full resolution. :class:`_NormActConv` therefore stores its input alone and recomputes the
normalised and activated map in the backward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost"),
which leaves one map a convolution instead of four.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medical_diffusion.errors import UserError
from medical_diffusion.networks.conv import Convolution, PaddingMode, channels_last

NORM_EPS = 1e-6


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation with the paper's epsilon; as many groups as asked for where there are so many channels.

    Raises:
        UserError: the channels are not divisible by the groups.
    """
    groups = min(groups, channels)
    if groups < 1 or channels % groups:
        raise UserError(f"norm_groups must divide the {channels} channels that are normalised", groups)
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class NormActConv(nn.Module):
    """Group normalisation, SiLU, convolution of stride 1: (B, in_channels, H, W, D) → (B, out_channels, H, W, D).

    Args:
        size: spatial size (H, W, D) of the maps.
        in_channels: channels of its input.
        out_channels: channels of its output.
        norm_groups: groups of the normalisation.
        kernel_size: of the convolution; 1 along axes of size 1.
        padding_mode: border of the convolution.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int,
        out_channels: int,
        norm_groups: int,
        kernel_size: int = 3,
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        super().__init__()
        self.norm = group_norm(in_channels, norm_groups)
        self.conv = Convolution(size, in_channels, out_channels, kernel_size, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W, D) → (B, out_channels, H, W, D), channels last."""
        norm, conv = self.norm, self.conv
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        y = _NormActConv.apply(
            channels_last(conv.squeezed(x).to(dtype)), norm.weight, norm.bias, norm.num_groups, norm.eps,
            conv.squeezed(conv.weight), conv.bias, conv.border, conv.padding_mode == "replicate",
        )  # fmt: skip
        return conv.unsqueezed(y)


class ResidualBlock(nn.Module):
    """Two times normalisation, SiLU and 3³ convolution, added to the input: (B, in, H, W, D) → (B, out, H, W, D).

    Where the channels change, the first convolution changes them and a 1³ convolution brings the input along.

    Args:
        size: spatial size (H, W, D) of the maps.
        channels: of its input.
        norm_groups: groups of the normalisations.
        padding_mode: border of the convolutions.
        out_channels: of its output; those of the input if None.
    """

    def __init__(
        self,
        size: Sequence[int],
        channels: int,
        norm_groups: int,
        padding_mode: PaddingMode = "replicate",
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        self.first = NormActConv(size, channels, out, norm_groups, padding_mode=padding_mode)
        self.second = NormActConv(size, out, out, norm_groups, padding_mode=padding_mode)
        self.skip = nn.Identity() if out == channels else Convolution(size, channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W, D) → (B, out_channels, H, W, D)."""
        return self.second(self.first(x)).add_(self.skip(x))


class _NormActConv(torch.autograd.Function):
    """``conv(pad(silu(group_norm(x))))`` that stores ``x`` and the statistics of its groups."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        groups: int,
        eps: float,
        weight: Tensor,
        bias: Tensor,
        border: tuple[int, ...],
        replicate: bool,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            shape = (x.shape[0], x.shape[1], x[0, 0].numel(), groups, eps)
            y, mean, rstd = torch.native_group_norm(x, gamma.to(x.dtype), beta.to(x.dtype), *shape)
            padded = _activated(y, border, replicate)
            del y
            ctx.save_for_backward(x, mean, rstd, gamma, beta, weight)
            ctx.shape, ctx.border, ctx.replicate = shape, border, replicate
            convolve = F.conv2d if x.dim() == 4 else F.conv3d
            padding = (0,) * len(border) if replicate else border
            return convolve(padded, weight.to(x.dtype), bias.to(x.dtype), padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, gamma, beta, weight = ctx.saved_tensors
        border, replicate = ctx.border, ctx.replicate
        batch, channels, voxels, groups, _ = ctx.shape
        with torch.autocast(x.device.type, enabled=False):
            scale = rstd.unsqueeze(-1) * gamma.view(groups, -1)
            shift = beta.view(groups, -1) - mean.unsqueeze(-1) * scale
            per_channel = (batch, channels) + (1,) * len(border)
            y = torch.addcmul(shift.view(per_channel).to(x.dtype), x, scale.view(per_channel).to(x.dtype))
            padded = _activated(y, border, replicate)
            ones, zeros = [1] * len(border), [0] * len(border)
            grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad, padded, weight.to(x.dtype), [grad.shape[1]], ones, zeros if replicate else list(border), ones,
                False, zeros, 1, [True, True, True],
            )  # fmt: skip
            del padded
            grad_y = _folded(grad_padded, border) if replicate else grad_padded
            # the kernel below reads both maps in the layout of x and is silently wrong where they differ
            grad_y = channels_last(torch.ops.aten.silu_backward.grad_input(grad_y, y, grad_input=y))
            del y, grad_padded
            # on a CPU the same kernel is four times slower in bfloat16
            compute = torch.float32 if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x.dtype
            grad_x, grad_gamma, grad_beta = torch.ops.aten.native_group_norm_backward(
                grad_y.to(compute), x.to(compute), mean.to(compute), rstd.to(compute), gamma.to(compute),
                batch, channels, voxels, groups, [True, True, True],
            )  # fmt: skip
        return (
            grad_x.to(x.dtype), grad_gamma.to(gamma.dtype), grad_beta.to(beta.dtype), None, None,
            grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None,
        )  # fmt: skip


def _activated(y: Tensor, border: tuple[int, ...], replicate: bool) -> Tensor:
    """SiLU of ``y``, written straight into a map that has room for the replicated border."""
    if not replicate or not any(border):
        return F.silu(y)
    size = [n + 2 * p for n, p in zip(y.shape[2:], border, strict=True)]
    memory_format = torch.channels_last if y.dim() == 4 else torch.channels_last_3d
    padded = torch.empty(*y.shape[:2], *size, dtype=y.dtype, device=y.device, memory_format=memory_format)
    inner = padded
    for axis, p in enumerate(border, start=2):
        inner = inner.narrow(axis, p, y.shape[axis])
    torch.ops.aten.silu.out(y, out=inner)
    for axis, p in enumerate(border, start=2):
        n = y.shape[axis]
        if p:
            padded.narrow(axis, 0, p).copy_(padded.narrow(axis, p, 1))
            padded.narrow(axis, n + p, p).copy_(padded.narrow(axis, n + p - 1, 1))
    return padded


def _folded(grad: Tensor, border: tuple[int, ...]) -> Tensor:
    """Backward of the replicated border: adds the gradient of the copies to that of the voxel they came from."""
    for axis, p in reversed(list(enumerate(border, start=2))):
        n = grad.shape[axis] - 2 * p
        if p:
            grad.narrow(axis, p, 1).add_(grad.narrow(axis, 0, p).sum(axis, keepdim=True))
            grad.narrow(axis, n + p - 1, 1).add_(grad.narrow(axis, n + p, p).sum(axis, keepdim=True))
        grad = grad.narrow(axis, p, n)
    return grad
