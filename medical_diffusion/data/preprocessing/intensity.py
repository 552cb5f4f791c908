"""Intensities to the model's range, and back.

The model works in [-1, 1]: ``y = 2 (x - a) / (b - a) - 1``, clipped, where ``(a, b)`` is a fixed window (HU for CT),
the volume's own minimum and maximum (the paper), two of its percentiles, or the full range of its stored type. Only
the fixed window can be undone to physical units; the others return to a relative scale in [0, 1].
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medical_diffusion.data.preprocessing.naming import name_of
from medical_diffusion.data.reading.flat_image import STORED_RANGE
from medical_diffusion.errors import UserError, did_you_mean

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
                f"{name_of(volume)} with {low:g} to {high:g}",
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
            f"{name_of(volume)} without {STORED_RANGE}",
            "Use mode window, minmax or percentile for volumes, or load the image with allow_planar",
        )
    return float(limits[0]), float(limits[1])


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
