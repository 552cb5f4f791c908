"""Do folders of images that are compared belong together, and is nothing written among them?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.errors import UserError

SPACING_TOLERANCE = 0.1


def check_apart(written: Mapping[str, str | Path], read: Iterable[str | Path]) -> None:
    """Refuse to write where images are read: pictures of this run would be images of the next.

    Args:
        written: folders by the name of their option.
        read: folders of images.

    Raises:
        UserError: a folder to write to lies in one of images, or is one.
    """
    for option, target in written.items():
        for folder in read:
            if Path(target).expanduser().resolve().is_relative_to(Path(folder).expanduser().resolve()):
                rule = f"--{option} must not lie in a folder of images, whose next reader would count its pictures"
                raise UserError(rule, f"{target} in {folder}", "Pass a folder beside them")


def spacing_warnings(real: ImageSet, generators: Mapping[str, ImageSet]) -> list[str]:
    """Sentences on volumes whose voxels are of another size than those of the real ones, by more than a tenth."""
    found = []
    for name, images in generators.items():
        if real.spacing is not None and images.spacing is not None and differ(real.spacing, images.spacing):
            own, others = (" x ".join(f"{length:.3g}" for length in s.spacing or ()) for s in (images, real))
            found.append(
                f"Voxels of {name} are {own} mm, those of the real images {others} mm (after crop and resize): "
                "anatomy is compared at different scales."
            )
    return found


def differ(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether voxel sizes differ along an axis by more than :data:`SPACING_TOLERANCE`."""
    ratios = np.array(first) / np.array(second)
    return bool((np.maximum(ratios, 1 / ratios) > 1 + SPACING_TOLERANCE).any())
