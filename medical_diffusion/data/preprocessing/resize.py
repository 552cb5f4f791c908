"""Resize with a triangle filter as wide as the shrinking asks for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medical_diffusion.shapes import per_axis


class ResizeVolumed(MapTransform):
    """Resize to a size with a triangle filter as wide as the shrinking asks for, so that nothing aliases.

    Per axis: linear interpolation where it grows, the triangle average of all voxels under the new one where it
    shrinks (MONAI's "area" repeats voxels where it grows, its "trilinear" skips voxels where it shrinks). Centres are
    aligned by voxel edges, and the affine's spacing and origin follow.

    Args:
        spatial_size: ``(H, W, D)`` of the result in voxels.
    """

    def __init__(
        self, keys: KeysCollection, spatial_size: int | Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = per_axis(spatial_size, "spatial_size")

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Resize ``data[key]`` of shape ``(C, H, W, D)``."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = resize_volume(item[key], self.spatial_size)
        return item


def resize_volume(volume: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
    """Separable antialiased resize of ``(C, H, W, D)`` to float32; a ``MetaTensor``'s affine follows."""
    old, new = tuple(volume.shape[1:]), tuple(int(size) for size in spatial_size)
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    x = plain.to(torch.float32)
    # One matrix product an axis, the last axis first: on 320^3 voxels several times as fast as the library's kernel.
    for axis in (3, 2, 1):
        if old[axis - 1] != new[axis - 1]:
            weights = _filter_matrix(old[axis - 1], new[axis - 1]).to(x.device)
            x = x @ weights.T if axis == 3 else (weights @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])
    if not isinstance(volume, MetaTensor):
        return x
    scale = torch.tensor([o / n for o, n in zip(old, new, strict=True)], dtype=torch.float64)
    step = torch.diag(torch.cat([scale, torch.ones(1, dtype=torch.float64)]))
    step[:3, 3] = (scale - 1) / 2
    resized = MetaTensor(x).copy_meta_from(volume)
    resized.affine = volume.affine.to(torch.float64) @ step
    return resized


def _filter_matrix(old: int, new: int) -> torch.Tensor:
    """Weights ``(new, old)`` of the antialiased linear filter along one axis; each row adds up to 1."""
    identity = torch.eye(old)[None, None]
    return F.interpolate(identity, size=(new, old), mode="bilinear", antialias=True, align_corners=False)[0, 0]
