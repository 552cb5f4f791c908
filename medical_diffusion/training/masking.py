"""Random block masks for pre-training: which voxels a network must reconstruct from the others.

The volume is cut into blocks of a fixed size, and round(ratio * blocks) of them, drawn without replacement for each
volume, are hidden: the share is the same in every draw. Along an axis of size 1 a block has size 1, and along a short
axis it is shortened, so that several blocks lie along each.

Hidden voxels become Gaussian noise with the mean and the standard deviation of the visible voxels of their volume.
Swin UNETR normalises every feature map over the whole volume: blocks of one constant would shrink the deviation that it
divides by, and the features that fine-tuning inherits would be tuned to statistics that no whole volume has. The other
way, a learned token, would be a weight that a plain Swin UNETR does not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

BLOCKS_PER_AXIS = 4
"""Where blocks of the asked size would be fewer along an axis, they are shortened there."""

FILLS = ("noise", "mean")


def block_size(image_size: Sequence[int], asked: int | Sequence[int]) -> tuple[int, int, int]:
    """Voxels (H, W, D) of a block: what was asked for, at most a quarter of each axis, and 1 along an axis of size 1.

    Raises:
        UserError: ``asked`` is not one or three positive whole numbers, or no two blocks fit into the image.
    """
    wanted = per_axis(asked, "mask_block")
    h, w, d = (max(1, min(b, n // BLOCKS_PER_AXIS)) for b, n in zip(wanted, image_size, strict=True))
    if all(n <= b for n, b in zip(image_size, (h, w, d), strict=True)):
        raise UserError("masks need an image of at least two blocks", tuple(image_size), "Use larger volumes")
    return h, w, d


def random_block_mask(
    count: int,
    image_size: Sequence[int],
    block: Sequence[int],
    ratio: float,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Masks (count, 1, H, W, D), True where hidden.

    Args:
        count: number of volumes.
        image_size: voxels (H, W, D).
        block: voxels (H, W, D) of a block; the last ones along an axis are cut where they do not fit.
        ratio: share of hidden blocks in (0, 1); at least one is hidden and one visible.
        device: of the result.
        generator: of the draw; torch's own by default.

    Raises:
        UserError: a ratio outside (0, 1).
    """
    if not 0.0 < ratio < 1.0:
        raise UserError("mask_ratio must lie between 0 and 1", ratio, "Usual ratios are 0.3 to 0.75")
    grid = [-(-n // b) for n, b in zip(image_size, block, strict=True)]
    blocks = grid[0] * grid[1] * grid[2]
    hidden = min(max(round(ratio * blocks), 1), blocks - 1)
    source = device if generator is None else generator.device
    order = torch.rand(count, blocks, device=source, generator=generator).argsort(dim=1).to(device)
    mask = (order < hidden).view(count, 1, grid[0], 1, grid[1], 1, grid[2], 1)
    mask = mask.expand(-1, -1, -1, block[0], -1, block[1], -1, block[2])
    mask = mask.reshape(count, 1, *(g * b for g, b in zip(grid, block, strict=True)))
    return mask[:, :, : image_size[0], : image_size[1], : image_size[2]]


def hide(images: Tensor, mask: Tensor, fill: str = "noise", generator: torch.Generator | None = None) -> Tensor:
    """``images`` (B, C, H, W, D) with what ``mask`` (B, 1, H, W, D) hides replaced.

    Args:
        fill: ``"noise"`` with the mean and deviation of the visible voxels, or their ``"mean"`` alone.
        generator: of the noise; torch's own by default.

    Raises:
        UserError: unknown fill.
    """
    if fill not in FILLS:
        raise UserError(f"mask_fill must be one of {', '.join(FILLS)}", fill)
    visible = (~mask).to(images.dtype)
    axes = (2, 3, 4)
    count = visible.sum(axes, keepdim=True)
    mean = (images * visible).sum(axes, keepdim=True) / count
    filling = mean
    if fill == "noise":
        variance = ((images - mean).square() * visible).sum(axes, keepdim=True) / count
        device = images.device if generator is None else generator.device
        noise = torch.randn(images.shape, device=device, generator=generator).to(images)
        filling = mean + variance.sqrt() * noise
    return torch.where(mask, filling, images)
