"""Intensities and grids: what MONAI's transforms lack to bring a volume to the model's range and size.

The model works in [-1, 1]: ``y = 2 (x - a) / (b - a) - 1``, clipped, where ``(a, b)`` is a fixed window (HU for CT),
the volume's own minimum and maximum (the paper), two of its percentiles, or the full range of its stored type. Only
the fixed window can be undone to physical units; the others return to a relative scale in [0, 1].
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResizeWithPadOrCrop

from medical_diffusion.data.reading.flat_image import STORED_RANGE
from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.shapes import per_axis

logger = logging.getLogger(__name__)

INTENSITY_MODES = ("window", "minmax", "percentile", "stored")


@dataclass(frozen=True)
class IntensityScaling:
    """Map of intensities to [-1, 1], and back.

    Args:
        mode: "window" (fixed limits), "minmax" (each volume's own), "percentile" (each volume's own percentiles),
            "stored" (the full range of the image's stored type: 0..255, 0..65535, as a flat image's metadata state).
        lower, upper: the window's limits in stored units, or the percentiles; not used by "minmax" and "stored".

    Raises:
        UserError: unknown mode, limits missing or not increasing, percentiles outside [0, 100].
    """

    mode: str
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in INTENSITY_MODES:
            raise UserError("intensity must be a known mode", self.mode, did_you_mean(str(self.mode), INTENSITY_MODES))
        if self.mode in ("minmax", "stored"):
            return
        if self.lower is None or self.upper is None or not self.lower < self.upper:
            raise UserError(f"intensity mode {self.mode} needs lower < upper", (self.lower, self.upper))
        if self.mode == "percentile" and not (self.lower >= 0 and self.upper <= 100):
            raise UserError("percentiles must lie in [0, 100]", (self.lower, self.upper))

    @property
    def is_physical(self) -> bool:
        """Whether ``to_physical`` gives stored units (HU for CT) rather than a relative scale."""
        return self.mode == "window"

    def limits(self, volume: torch.Tensor) -> tuple[float, float]:
        """The intensities that become -1 and 1.

        Raises:
            UserError: they are equal, so that the volume cannot be scaled; mode "stored" without the metadata.
        """
        if self.mode == "window":
            return self._window()
        if self.mode == "stored":
            low, high = _stored_range(volume)
        elif self.mode == "minmax":
            low, high = float(volume.min()), float(volume.max())
        else:
            # torch.quantile refuses more than 2^24 elements.
            percentiles = np.array([self.lower, self.upper], dtype=float)
            low, high = (float(v) for v in np.percentile(volume.numpy(force=True), percentiles))
        if not low < high:
            raise UserError(
                f"intensity mode {self.mode} needs a volume that varies",
                f"{_name(volume)} with {low:g} to {high:g}",
                "Use mode minmax or window, or remove the volume",
            )
        return low, high

    def to_model_range(self, volume: torch.Tensor) -> torch.Tensor:
        """Stored units to [-1, 1]; what lies beyond the limits is clipped."""
        low, high = self.limits(volume)
        return ((volume - low) * (2 / (high - low)) - 1).clamp(-1, 1)

    def to_physical(self, volume: torch.Tensor) -> torch.Tensor:
        """[-1, 1] to stored units for a fixed window, to [0, 1] otherwise; what lies beyond is clipped."""
        unit = (volume.clamp(-1, 1) + 1) / 2
        if self.mode != "window":
            return unit
        low, high = self._window()
        return unit * (high - low) + low

    def _window(self) -> tuple[float, float]:
        assert self.lower is not None
        assert self.upper is not None
        return float(self.lower), float(self.upper)

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values, for checkpoints and provenance files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> IntensityScaling:
        """Inverse of ``to_dict``."""
        return cls(**fields)


def _stored_range(volume: torch.Tensor) -> tuple[float, float]:
    limits = volume.meta.get(STORED_RANGE) if isinstance(volume, MetaTensor) else None
    if limits is None:
        raise UserError(
            "intensity mode stored needs the range of the stored type, which flat images bring",
            f"{_name(volume)} without {STORED_RANGE}",
            "Use mode window, minmax or percentile for volumes, or load the image with allow_planar",
        )
    return float(limits[0]), float(limits[1])


def _name(volume: torch.Tensor) -> str:
    return volume.meta.get("filename_or_obj", "a volume") if isinstance(volume, MetaTensor) else "a volume"


class ScaleToModelRanged(MapTransform):
    """Bring intensities to [-1, 1]; shape, affine and metadata stay.

    Args:
        scaling: an ``IntensityScaling``, or its fields as a dictionary.
    """

    def __init__(
        self, keys: KeysCollection, scaling: IntensityScaling | Mapping[str, Any], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scaling = scaling if isinstance(scaling, IntensityScaling) else IntensityScaling.from_dict(scaling)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Scale ``data[key]``, any shape."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.scaling.to_model_range(item[key])
        return item


class CenterCropOrPadd(MapTransform):
    """Centre crop to a size; an axis that is shorter is padded, which the log says once a run.

    Args:
        spatial_size: ``(H, W, D)`` of the result in voxels.
        padding_value: number to pad with, or "minimum" for each volume's own minimum. Pad with -1 after scaling to
            [-1, 1], with air or "minimum" before.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: int | Sequence[int],
        padding_value: float | str = -1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size = per_axis(spatial_size, "spatial_size")
        if isinstance(padding_value, str) and padding_value != "minimum":
            raise UserError("padding_value must be a number or 'minimum'", padding_value)
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
            _name(image),
            tuple(image.shape[1:]),
        )


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
