"""Swin UNETR (Hatamizadeh et al. 2022) for any size: MONAI's network, padded to what it can take and cropped back.

The network halves every axis five times, so each must be a multiple of 32, and its instance norms need more than one
position at the bottleneck: one axis has to be 64 at least. What is missing is filled by repeating the border on both
sides, no more than is needed (32 x 48 x 32 runs as 32 x 64 x 32), and cut off the result. A size that fits is passed on
untouched, so the numbers are MONAI's, and so are the names and shapes of the weights: attention windows and position
biases do not depend on the size of the image.

An image (depth 1) runs through the network's 2D form; which one is built follows from the configured size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

STRIDE = 32
"""Voxels along an axis that become one position at the bottleneck."""

SMALLEST_AXIS = 8
"""Below this, three quarters of an axis would be padding."""

WIDTH_UNIT = 12
"""MONAI's rule for the width at full resolution."""


class SwinUNETR(MonaiSwinUNETR):
    """MONAI's Swin UNETR with the same weights, for volumes and images of any size.

    Args:
        image_size: voxels (H, W, D) that it will mostly see; D = 1 builds the 2D form.
        in_channels: channels of the input.
        out_channels: channels of the output.
        feature_size: width at full resolution, a multiple of 12.
        options: further arguments of MONAI's class.

    Raises:
        UserError: an axis is too short, or ``feature_size`` is not a multiple of 12.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        in_channels: int = 1,
        out_channels: int = 1,
        feature_size: int = 24,
        **options: Any,
    ) -> None:
        size = per_axis(image_size, "image_size")
        if feature_size < 1 or feature_size % WIDTH_UNIT:
            raise UserError(
                f"feature_size must be a multiple of {WIDTH_UNIT}", feature_size, "Usual widths are 12, 24 and 48"
            )
        self.planar = size[2] == 1
        padded_size(size[:2] if self.planar else size)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            spatial_dims=2 if self.planar else 3,
            **options,
        )
        # a training step takes a fifth less time on CPU than in the default layout
        self.layout = torch.channels_last if self.planar else torch.channels_last_3d
        self.to(memory_format=self.layout)

    def forward(self, x_in: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W, D) to (B, out_channels, H, W, D); the 2D form also takes (B, C, H, W).

        Raises:
            UserError: an axis is too short, a volume for the 2D form, or an image for the 3D form.
        """
        if self.planar and x_in.ndim == 5:
            if x_in.shape[-1] != 1:
                raise UserError(
                    "a Swin UNETR of images (depth 1) takes images",
                    f"depth {x_in.shape[-1]}",
                    "Build it with the volumes' image_size",
                )
            return self.forward(x_in[..., 0])[..., None]
        if not self.planar and x_in.shape[-1] == 1:
            raise UserError(
                "a Swin UNETR of volumes takes more than one slice",
                tuple(x_in.shape),
                "Build it with image_size (H, W, 1) for images",
            )
        size = tuple(x_in.shape[2:])
        target = padded_size(size)
        if target == size:
            return super().forward(x_in.contiguous(memory_format=self.layout))
        before = [(to - n) // 2 for n, to in zip(size, target, strict=True)]
        margins = [(b, to - n - b) for n, to, b in zip(size, target, before, strict=True)]
        padding = [margin for pair in reversed(margins) for margin in pair]
        logits = super().forward(F.pad(x_in, padding, mode="replicate").contiguous(memory_format=self.layout))
        inside = tuple(slice(b, b + n) for b, n in zip(before, size, strict=True))
        return logits[(..., *inside)]


def padded_size(size: Sequence[int]) -> tuple[int, ...]:
    """The smallest size that the network takes and that holds ``size``, (H, W) or (H, W, D).

    Raises:
        UserError: an axis is too short.
    """
    if min(size) < SMALLEST_AXIS:
        raise UserError(
            f"Swin UNETR needs at least {SMALLEST_AXIS} voxels along each axis",
            tuple(size),
            "Use larger volumes or crops, a finer spacing, or single slices (depth 1)",
        )
    target = [-(-n // STRIDE) * STRIDE for n in size]
    if max(target) == STRIDE:
        target[max(range(len(size)), key=lambda axis: size[axis])] = 2 * STRIDE
    return tuple(target)
