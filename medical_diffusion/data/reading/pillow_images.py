"""Flat images that Pillow reads: PNG, JPEG and TIFF, with every pixel's full depth.

Pillow reduces 16-bit RGB, and 16-bit grey with transparency, to bytes: SimpleITK decodes these. A palette is expanded,
to grey where all of its entries are grey; what is transparent becomes black; EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medical_diffusion.data.checks import VolumeHeader
from medical_diffusion.data.reading.file_errors import as_user_error
from medical_diffusion.data.reading.flat_image import FlatImage, on_black
from medical_diffusion.errors import UserError

_FORMATS = ("PNG", "JPEG", "TIFF")
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262
_WIDE_MODES = {"I": "int32", "F": "float32"}
_MIN_IS_WHITE = 0
_FIRST_ROTATED = 5  # EXIF orientations from this one on exchange rows and columns


def read_pillow_header(path: Path) -> VolumeHeader:
    """Rows, columns, channels and type, without decoding.

    Raises:
        UserError: not of a known format, several pages or frames, more pixels than Pillow's guard allows.
    """
    with as_user_error(path), _opened(path) as image:
        columns, rows = image.size
        if _orientation(image) >= _FIRST_ROTATED:
            rows, columns = columns, rows
        return VolumeHeader((rows, columns), np.eye(4), _dtype(path, image), _colours(image))


def read_pillow_image(path: Path) -> FlatImage:
    """Decode one image.

    Raises:
        UserError: as ``read_pillow_header``; a file that ends early; a TIFF of an orientation that is not read rightly.
    """
    with as_user_error(path), _opened(path) as image:
        orientation = _orientation(image)
        pixels, top = _deep_pixels(path) if _is_deep(path, image) else _pixels(image)
        if image.format == "TIFF":  # its own loader has turned the pixels
            orientation = 1
        return FlatImage.of(_upright(pixels, orientation), None if top is None else (0.0, top))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with Image.open(path, formats=_FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise UserError(
                "an image file must hold one image",
                f"{path} with {frames} pages or frames",
                "Save each page or frame to a file of its own",
            )
        if image.format == "TIFF":
            # Pillow exchanges the sides of such a file before it decodes, and SimpleITK turns none but 1 and 4.
            known = (1, 4) if _is_deep(path, image) else (1, 2, 3, 4)
            if _orientation(image) not in known:
                raise UserError(
                    "a TIFF file must be stored upright",
                    f"{path} with orientation {_orientation(image)}",
                    "Save it without an orientation tag, or as PNG",
                )
        yield image


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(_ORIENTATION, 1))


def _is_deep(path: Path, image: Any) -> bool:
    """Whether Pillow would reduce 16 bits to 8."""
    if image.format == "PNG":
        with path.open("rb") as file:
            depth, colour_type = file.read(26)[24:26]
        return depth == 16 and (colour_type != 0 or "transparency" in image.info)
    bits = image.tag_v2.get(_BITS, (8,)) if image.format == "TIFF" else (8,)
    return len(bits) > 1 and max(bits) > 8


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info


def _colours(image: Image.Image) -> int:
    if image.mode in ("P", "PA"):
        entries = np.reshape(image.getpalette() or [], (-1, 3))
        return 1 if (entries == entries[:, :1]).all() else 3
    return 1 if image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16") else 3


def _dtype(path: Path, image: Image.Image) -> str:
    if image.mode.startswith("I;16") or _is_deep(path, image):
        return "uint16"
    return "bool" if image.mode == "1" else _WIDE_MODES.get(image.mode, "uint8")


def _pixels(image: Any) -> tuple[np.ndarray, float | None]:
    """Decoded pixels without alpha, and the highest value of their type where the array's own does not say it."""
    if image.mode.startswith("I;16"):
        bits = max(image.tag_v2.get(_BITS, (16,))) if image.format == "TIFF" else 16
        top = 2.0**bits - 1
        is_inverse = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _MIN_IS_WHITE
        pixels = np.asarray(image).astype(np.float32)
        return (top - pixels if is_inverse else pixels), top
    if image.mode in _WIDE_MODES:
        return np.asarray(image), None
    colours = _colours(image)
    if _has_alpha(image):
        rgba = np.asarray(image.convert("RGBA"))
        pixels = on_black(rgba[..., [0, 3]] if colours == 1 else rgba, 255.0)
    else:
        pixels = np.asarray(image.convert("L" if colours == 1 else "RGB"))
    return (pixels / 255, 1.0) if image.mode == "1" else (pixels, 255.0)


def _deep_pixels(path: Path) -> tuple[np.ndarray, float]:
    """As ``_pixels``, for what Pillow would reduce."""
    import SimpleITK as sitk

    top = 65535.0
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return (on_black(pixels, top) if pixels.shape[-1] in (2, 4) and pixels.ndim == 3 else pixels), top


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned as EXIF's orientation asks (EXIF 2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
