"""Volumes that hold nothing: every voxel alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from medical_diffusion.data.preprocessing.naming import name_of
from medical_diffusion.errors import UserError


class RequireVariationd(MapTransform):
    """Pass volumes on, and refuse one whose voxels are all alike.

    Raises:
        UserError: a constant volume, by name.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Look at ``data[key]``, any shape."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if not bool(image.max() > image.min()):
                raise UserError(
                    "volumes must vary after scaling to [-1, 1]",
                    f"{name_of(image)}, {float(image.min()):g} everywhere",
                    "Remove it, or scale by another --intensity or --window",
                )
        return item
