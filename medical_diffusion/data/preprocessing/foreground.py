"""Crop to the foreground: the bounding box of all voxels above the background, as a skull-stripped brain needs it.

MONAI's ``CropForeground`` finds and cuts the box; what it lacks is a word about a volume without any foreground.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import CropForeground, MapTransform

from medical_diffusion.data.preprocessing.naming import name_of
from medical_diffusion.errors import UserError


class CropToForegroundd(MapTransform):
    """Cut a volume to the box of its voxels above ``background``, with a margin inside the volume; affine follows.

    Args:
        margin: voxels kept around the box.
        background: stored value of what is not foreground; only voxels above it count.

    Raises:
        UserError: a margin below 0; a volume without a voxel above the background.
    """

    def __init__(
        self, keys: KeysCollection, margin: int = 0, background: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if isinstance(margin, bool) or int(margin) != margin or margin < 0:
            raise UserError("the margin of a foreground crop must be a whole number of voxels, 0 or more", margin)
        self.background = float(background)
        self.cropper = CropForeground(select_fn=self._is_foreground, margin=int(margin), allow_smaller=True)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Crop ``data[key]`` of shape ``(C, H, W, D)``."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if not bool(self._is_foreground(image).any()):
                raise UserError(
                    f"a foreground crop needs voxels above {self.background:g}",
                    f"{name_of(image)} with {float(image.min()):g} to {float(image.max()):g}",
                    "Leave the crop out (--foreground_crop none), or remove the volume",
                )
            item[key] = self.cropper(image)
        return item

    def _is_foreground(self, image: Any) -> Any:
        return image > self.background
