"""Patch discriminator (Isola et al. 2017) for slices and volumes: it judges overlapping patches, not the whole image.

Kernel 4; strides 2, 2, 2, 1, 1; channels 64-128-256-512-1; LeakyReLU 0.2. Its intermediate maps serve feature matching
(Wang et al. 2018). A slice is a volume of depth 1: same class, 2D kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.networks.conv import Convolution, channels_last
from medical_diffusion.shapes import per_axis

DiscriminatorNorm = Literal["group", "instance", "batch", "none"]
NORMS = ("group", "instance", "batch", "none")
KERNEL = 4
#: an axis is not halved below this many positions, so that small images keep a map of patches
MIN_MAP = 4
MAX_WIDTH_FACTOR = 8


class PatchDiscriminator(nn.Module):
    """Patch discriminator: (B, in_channels, H, W, D) → list of feature maps, the logits (B, 1, h, w, d) last.

    Args:
        image_size: (H, W, D); depth 1 for slices.
        in_channels: channels of the image.
        channels: width of the first layer; doubled per layer up to eight times (64-128-256-512).
        num_layers: layers before the one that gives the logits; all but the last halve each axis that has at least
            twice ``MIN_MAP`` positions.
        norm: between the layers: ``"group"`` (8 groups), ``"instance"``, ``"batch"`` or ``"none"``. Batch statistics
            of a batch of two are noise, and would tie real and generated images together.

    Raises:
        UserError: an option out of range; in the call, an image of another size.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int = 1,
        channels: int = 64,
        num_layers: int = 4,
        norm: DiscriminatorNorm = "group",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UserError("norm must be known", norm, did_you_mean(str(norm), NORMS))
        if num_layers < 2:
            raise UserError("num_layers must be at least 2", num_layers)
        self.image_size = size = per_axis(image_size, "image_size")
        self.in_channels = in_channels
        self.layers = nn.ModuleList()
        width = in_channels
        for index in range(num_layers):
            out = channels * min(2**index, MAX_WIDTH_FACTOR)
            stride = per_axis([2 if n >= 2 * MIN_MAP and index < num_layers - 1 else 1 for n in size], "stride")
            conv = Convolution(size, width, out, _kernel(size), stride, "zeros")
            normalise = _norm(norm, out) if index else nn.Identity()
            self.layers.append(nn.Sequential(conv, normalise, nn.LeakyReLU(0.2, inplace=True)))
            size, width = conv.out_size, out
        logits = Convolution(size, width, 1, _kernel(size), padding_mode="zeros")
        self.layers.append(logits)
        self.out_size = logits.out_size

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of an image, one per layer, the logits last."""
        if tuple(x.shape[1:]) != (self.in_channels, *self.image_size):
            raise UserError(
                f"the discriminator's image must be (B, {self.in_channels}, {', '.join(map(str, self.image_size))})",
                tuple(x.shape),
            )
        x = channels_last(x)
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


def _kernel(size: Sequence[int]) -> tuple[int, int, int]:
    """4, or the whole axis where it is shorter.

    A kernel with taps that meet padding only has gradients of zero there, and oneDNN leaves them unwritten in bfloat16.
    """
    return per_axis([min(KERNEL, n) for n in size], "kernel_size")


def _norm(norm: DiscriminatorNorm, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(min(8, channels), channels)
    if norm == "instance":  # as a group normalisation: unlike InstanceNorm it takes a single position and any rank
        return nn.GroupNorm(channels, channels)
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    return nn.Identity()
