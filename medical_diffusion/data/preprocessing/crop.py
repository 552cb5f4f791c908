"""Centre crop to a size, padded where a volume is smaller."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, ResizeWithPadOrCrop

from medical_diffusion.data.preprocessing.naming import name_of
from medical_diffusion.errors import UserError
from medical_diffusion.shapes import SPATIAL_AXES

logger = logging.getLogger(__name__)

MOSTLY_PADDING = 0.25
"""Share of image in a crop below which padding is taken for a mistake."""


class CenterCropOrPadd(MapTransform):
    """Centre crop to a size; an axis that is shorter is padded, which the log says once a run.

    Args:
        spatial_size: ``(H, W, D)`` of the result in voxels; 0 leaves an axis as long as it is.
        padding_value: number to pad with, or "minimum" for each volume's own minimum. Pad with -1 after scaling to
            [-1, 1], with air or "minimum" before.

    Raises:
        UserError: a size below 0, or another padding.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: int | Sequence[int],
        padding_value: float | str = -1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        sizes = [spatial_size] * SPATIAL_AXES if isinstance(spatial_size, int) else list(spatial_size)
        if len(sizes) != SPATIAL_AXES or any(int(size) != size or size < 0 for size in sizes):
            raise UserError("a crop must be one or three whole numbers (H, W, D), 0 for a whole axis", spatial_size)
        if isinstance(padding_value, str) and padding_value != "minimum":
            raise UserError("padding_value must be a number or 'minimum'", padding_value)
        self.spatial_size = tuple(int(size) for size in sizes)
        self.padding_value = padding_value
        self._has_said = False

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Crop or pad ``data[key]`` of shape ``(C, H, W, D)``."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if any(have < want for have, want in zip(image.shape[1:], self.spatial_size, strict=True)):
                self._say(image)
            value = float(image.min()) if self.padding_value == "minimum" else float(self.padding_value)
            item[key] = ResizeWithPadOrCrop(self.spatial_size, mode="constant", value=value)(image)
        return item

    def _say(self, image: torch.Tensor) -> None:
        worker = torch.utils.data.get_worker_info()
        if self._has_said or (worker is not None and worker.id > 0):
            return
        self._has_said = True
        logger.warning(
            "Volumes smaller than the crop %s are padded with %s (first: %s of %s; said once)",
            self.spatial_size,
            self.padding_value,
            name_of(image),
            tuple(image.shape[1:]),
        )
        kept = math.prod(min(n / size, 1) for n, size in zip(image.shape[1:], self.spatial_size, strict=True) if size)
        if kept < MOSTLY_PADDING:
            logger.warning(
                "Only %.0f %% of that crop would be image, so detail is lost when it is resized: --crop_size none "
                "takes volumes whole, --spacing none keeps their voxels.",
                100 * kept,
            )
