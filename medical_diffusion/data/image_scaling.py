"""How the stored values of an evaluated image become [-1, 1]: by a map of all images, or by each image's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from medical_diffusion.data.preprocessing.intensity import IntensityScaling
from medical_diffusion.data.reading.flat_image import STORED_RANGE
from medical_diffusion.errors import UserError

PERCENTILES = (0.5, 99.5)
OWN_MAPS = ("percentile", "minmax")
"""Maps that are each image's own."""
RELATIVE = IntensityScaling("window", 0.0, 1.0)
"""Reads samples that were written relative, 0 to 1: the maps of training have been applied to them already."""


def chosen_scaling(intensity: str, window: Sequence[float] | None, is_planar: bool) -> IntensityScaling:
    """The map of a name; "auto" is "window" where one is given, "stored" for images and "percentile" for volumes.

    Raises:
        UserError: an unknown name, a window where none belongs, or none where one does.
    """
    if intensity == "auto":
        intensity = "window" if window is not None else "stored" if is_planar else "percentile"
    if intensity == "window":
        if window is None or len(window) != 2:
            raise UserError("intensity window needs two limits", window, "Pass window lower and upper")
        return IntensityScaling("window", float(window[0]), float(window[1]))
    if window is not None:
        raise UserError("a window belongs to intensity window", f"window {tuple(window)} with intensity {intensity}")
    return IntensityScaling(intensity, *(PERCENTILES if intensity == "percentile" else ()))


def scaled(image: MetaTensor, scaling: IntensityScaling) -> MetaTensor:
    """To [-1, 1]; what is the same everywhere becomes -1, a bright spot on a plain ground keeps its full range."""
    if scaling.mode == "window":
        return scaling.to_model_range(image)
    if scaling.mode == "stored" and STORED_RANGE in image.meta:
        low, high = image.meta[STORED_RANGE]
        return scaling.to_model_range(image) if low < high else torch.full_like(image, -1.0)
    if float(image.min()) == float(image.max()):
        return torch.full_like(image, -1.0)
    try:
        return scaling.to_model_range(image)
    except UserError:
        if scaling.mode != "percentile":
            raise
        return IntensityScaling("minmax").to_model_range(image)
