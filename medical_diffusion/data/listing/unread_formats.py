"""Images by the names of their files that no reader of this package takes: such as BMP, WebP, MINC, Analyze.

Which suffixes mean an image is known by Pillow and nibabel, which read more formats than this package does.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from nibabel.imageclasses import all_image_classes
from nibabel.spatialimages import SpatialImage
from PIL import Image

_OF_ITK_ALONE = (".gipl", ".mrc", ".vtk")
"""Volumes that neither of the two knows."""
_COMPRESSED = (".gz", ".bz2", ".zst", ".z")


def image_suffix(path: Path) -> str | None:
    """Suffix of a file that is an image by its name, in lower case, with that of a compression; None for others."""
    name = path.name.lower()
    outer = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(outer)).suffix
    return suffix + outer if suffix in _image_suffixes() else None


@cache
def _image_suffixes() -> frozenset[str]:
    pictures = [suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN]
    volumes = [s for kind in all_image_classes if issubclass(kind, SpatialImage) for s in kind.valid_exts]
    return frozenset([*pictures, *volumes, *_OF_ITK_ALONE])
