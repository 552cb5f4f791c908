"""Convolutions that know the size they run on.

A network is built for one image size, so every convolution is built for the size of the map it receives: along an axis
of size 1 its kernel and its stride are 1, and where the depth has size 1 the same weights run as a 2D convolution on
the squeezed tensor (a 3D call on depth 1 takes about twice as long). Nothing else in the networks asks about depth.

Padding is "same": ``kernel // 2`` voxels on both sides for an odd kernel, ``(kernel - stride) // 2`` for an even one. A
convolution of stride ``s`` then maps ``n``, a multiple of ``s``, to ``n // s`` and a transposed one maps ``n`` to
``n * s``; an even kernel with an odd stride loses one position more (the patch discriminators' kernel 4 at stride 1).
The border repeats the nearest voxel (``padding_mode="replicate"``, Medical Diffusion's choice) or is zero
(``"zeros"``).

Maps stay in ``torch.channels_last_3d``: oneDNN takes it without a reorder, several times faster than the contiguous
layout. A map of one channel has both layouts at once, and PyTorch then picks the wrong one for the output; small
problems leave oneDNN for a kernel that knows only the contiguous layout. :func:`channels_last` settles both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.networks.matrix_conv import matrix_conv, prefers_matrix
from medical_diffusion.networks.narrow_conv import narrow_conv, prefers_narrow
from medical_diffusion.shapes import per_axis

PaddingMode = Literal["replicate", "zeros"]
PADDING_MODES = ("replicate", "zeros")


def channels_last(x: Tensor) -> Tensor:
    """``x`` (B, C, H, W, D) or (B, C, H, W) with the channel as the fastest axis, also when there is only one."""
    x = x.contiguous(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)
    if x.shape[1] == 1:  # strides of size-1 axes are free: pick those that PyTorch reads as channels last
        x = x.squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return x


def replicate_pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Repeat the border voxels ``padding`` times on both sides of each spatial axis; the result is channels last."""
    flat = [p for p in reversed(padding) for _ in range(2)]
    return channels_last(F.pad(x, flat, mode="replicate")) if any(flat) else x


def _border(kernel_size: int, stride: int) -> int:
    """Voxels of padding on each side of an axis."""
    return kernel_size // 2 if kernel_size % 2 else (kernel_size - stride) // 2


class _SizedConvolution(nn.Module):
    """What both directions share: sizes per axis, weights, and the choice between 2D and 3D kernels."""

    weight: nn.Parameter
    transposed = False

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding_mode: PaddingMode,
    ) -> None:
        super().__init__()
        if padding_mode not in PADDING_MODES:
            raise UserError("padding_mode must be known", padding_mode, did_you_mean(str(padding_mode), PADDING_MODES))
        self.size = per_axis(size, "size")
        kernel = per_axis(kernel_size, "kernel_size")
        strides = per_axis(stride, "stride")
        self.kernel_size = tuple(1 if n == 1 else k for n, k in zip(self.size, kernel, strict=True))
        self.stride = tuple(1 if n == 1 else s for n, s in zip(self.size, strides, strict=True))
        if any(k < s for k, s in zip(self.kernel_size, self.stride, strict=True)):
            raise UserError(
                "kernel_size must not be smaller than the stride", f"kernel_size {kernel}, stride {strides}"
            )
        self.padding_mode = padding_mode
        self.in_channels, self.out_channels = in_channels, out_channels
        channels = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        weight = torch.empty(*channels, *self.kernel_size)
        nn.init.kaiming_uniform_(weight, a=5**0.5)  # PyTorch's default for its own convolutions
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last_3d))
        fan_in = weight[0].numel()
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-(fan_in**-0.5), fan_in**-0.5))
        #: number of spatial axes that the kernels run over: 2 where the depth has size 1
        self.rank = 2 if self.size[-1] == 1 else 3

    @property
    def border(self) -> tuple[int, ...]:
        """Voxels of padding on each side, for the ``rank`` axes that the kernel runs over."""
        return tuple(map(_border, self.kernel_size, self.stride))[: self.rank]

    def squeezed(self, x: Tensor) -> Tensor:
        """A map, or the weight, without the depth axis where the kernels are 2D (a view)."""
        return x.squeeze(-1) if self.rank == 2 else x

    def unsqueezed(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`squeezed` for maps, channels last."""
        x = channels_last(x)
        return x.movedim(1, -1).unsqueeze(3).movedim(-1, 1) if self.rank == 2 else x

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, size={self.size}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding_mode={self.padding_mode}"
        )


class Convolution(_SizedConvolution):
    """Convolution: (B, in_channels, H, W, D) → (B, out_channels, *out_size).

    Args:
        size: spatial size (H, W, D) of the maps it receives.
        in_channels: channels of its input.
        out_channels: channels of its output.
        kernel_size: one number or three; 1 along axes of size 1, whatever is asked.
        stride: one number or three; 1 along axes of size 1.
        padding_mode: ``"replicate"`` or ``"zeros"``.

    Raises:
        UserError: a stride larger than the kernel, or an unknown padding mode.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        super().__init__(size, in_channels, out_channels, kernel_size, stride, padding_mode)
        axes = zip(self.size, self.kernel_size, self.stride, strict=True)
        self.out_size = per_axis([(n + 2 * _border(k, s) - k) // s + 1 for n, k, s in axes], "size of the output")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) → (B, out_channels, *out_size), channels last."""
        x, border = self.squeezed(x), self.border
        if self.padding_mode == "replicate":
            x, border = replicate_pad(x, border), (0,) * self.rank
        stride, weight = self.stride[: self.rank], self.squeezed(self.weight)
        if prefers_matrix(x, weight, self.out_size):
            return self.unsqueezed(matrix_conv(x, weight, self.bias, stride, border, self.out_size[: self.rank]))
        if prefers_narrow(x, weight, stride):
            return self.unsqueezed(narrow_conv(x, weight, self.bias, border))
        convolve = F.conv2d if self.rank == 2 else F.conv3d
        return self.unsqueezed(convolve(x, self.squeezed(self.weight), self.bias, self.stride[: self.rank], border))


class TransposedConvolution(_SizedConvolution):
    """Transposed convolution: (B, in_channels, H, W, D) → (B, out_channels, H·sH, W·sW, D·sD).

    With ``padding_mode="replicate"`` its input is extended by one voxel, so that border voxels receive as many terms
    as inner ones. Arguments and errors as in :class:`Convolution`.
    """

    transposed = True

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 4,
        stride: int | Sequence[int] = 2,
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        super().__init__(size, in_channels, out_channels, kernel_size, stride, padding_mode)
        if any((k - s) % 2 for k, s in zip(self.kernel_size, self.stride, strict=True)):
            raise UserError(
                "kernel_size - stride must be even in a transposed convolution",
                f"kernel_size {self.kernel_size}, stride {self.stride}",
                "Use an odd kernel with stride 1 and an even one with stride 2",
            )
        self.out_size = per_axis([n * s for n, s in zip(self.size, self.stride, strict=True)], "size of the output")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) → (B, out_channels, *out_size), channels last."""
        x, stride, crop = self.squeezed(x), self.stride[: self.rank], self.border
        if self.padding_mode == "replicate":
            extension = [-(-p // s) for p, s in zip(crop, stride, strict=True)]
            x = replicate_pad(x, extension)
            crop = tuple(p + e * s for p, e, s in zip(crop, extension, stride, strict=True))
        convolve = F.conv_transpose2d if self.rank == 2 else F.conv_transpose3d
        y = convolve(x, self.squeezed(self.weight), None, stride, crop)
        # added here: oneDNN's own gradient of this bias takes as long as half of that of the weights
        return self.unsqueezed(y.add_(self.bias.to(y.dtype).view(-1, *[1] * self.rank)))


class UpsamplingConvolution(Convolution):
    """Nearest-neighbour upsampling, then a convolution: (B, in_channels, *size) → (B, out_channels, *size x factor).

    Each output voxel has as many terms as any other, unlike in a transposed convolution (Odena et al. 2016,
    "Deconvolution and checkerboard artifacts"). Errors as in :class:`Convolution`.

    Args:
        size: spatial size (H, W, D) of the maps it receives.
        in_channels: channels of its input.
        out_channels: channels of its output.
        factor: of the upsampling, one number or three; 1 along axes of size 1.
        kernel_size: of the convolution.
        padding_mode: ``"replicate"`` or ``"zeros"``.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int,
        out_channels: int,
        factor: int | Sequence[int] = 2,
        kernel_size: int | Sequence[int] = 3,
        padding_mode: PaddingMode = "replicate",
    ) -> None:
        factors = [1 if n == 1 else f for n, f in zip(size, per_axis(factor, "factor"), strict=True)]
        large = [n * f for n, f in zip(size, factors, strict=True)]
        super().__init__(large, in_channels, out_channels, kernel_size, 1, padding_mode)
        self.scale = tuple(float(f) for f in factors[: self.rank])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) → (B, out_channels, *out_size), channels last."""
        large = F.interpolate(self.squeezed(x), scale_factor=self.scale, mode="nearest")
        return super().forward(self.unsqueezed(large))
