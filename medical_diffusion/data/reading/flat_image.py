"""A flat image in memory: its pixels, the range of its stored type, and the change between grey and RGB.

The stored range gives images of one type one scale: 0..255 for bytes, 0..65535 for 16 bits, 0..1 for boolean values.
Floats have no such limits and keep [0, 1] where they lie inside; other floats, and signed or wide integers, of which
no image uses the full range, take the image's own minimum and maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medical_diffusion.errors import UserError

#: Metadata key of a flat image's (lowest, highest) value.
STORED_RANGE = "stored_range"
#: Weights of red, green and blue in the luma of Rec. ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
_TYPE_RANGES = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


@dataclass(frozen=True)
class FlatImage:
    """One image as it is looked at: rows run downwards, columns to the right.

    Attributes:
        pixels: float32 ``(H, W)`` or ``(H, W, 3)``, in stored units.
        stored_range: lowest and highest value of the stored type, in the same units.
        affine: (row, column, 0) to millimetres in RAS+, ``(4, 4)``; identity where the file states none.
    """

    pixels: np.ndarray
    stored_range: tuple[float, float]
    affine: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray, stored_range: tuple[float, float] | None = None) -> FlatImage:
        """An image without geometry; the range is that of the array's type unless it is given."""
        limits = range_of(pixels) if stored_range is None else stored_range
        return cls(np.ascontiguousarray(pixels, dtype=np.float32), limits, np.eye(4))


def range_of(pixels: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of the stored type, as the module's first lines say."""
    if pixels.dtype.name in _TYPE_RANGES:
        return _TYPE_RANGES[pixels.dtype.name]
    finite = pixels[np.isfinite(pixels)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (0.0, 1.0) if pixels.dtype.kind == "f" and low >= 0 and high <= 1 else (low, high)


def on_black(pixels: np.ndarray, opaque: float) -> np.ndarray:
    """``(H, W, colours + alpha)`` laid over black, ``(H, W)`` or ``(H, W, 3)`` in float32; opaque pixels stay exact.

    Args:
        opaque: the alpha of an opaque pixel.
    """
    colours = pixels[..., :-1].astype(np.float32) * (pixels[..., -1:].astype(np.float32) / opaque)
    return colours[..., 0] if colours.shape[-1] == 1 else colours


def match_channels(
    pixels: np.ndarray, colours: int, channels: int | None, convert: bool, path: str | Path
) -> np.ndarray:
    """Pixels with as many channels as a model takes.

    Args:
        pixels: ``(H, W, D)`` for one colour, ``(H, W, D, 3)`` for three.
        colours: 1 or 3, what the file holds.
        channels: 1 or 3, what is asked for; ``None`` takes what there is.
        convert: make grey of RGB (Rec. 601 luma) and RGB of grey (repeated).

    Raises:
        UserError: an RGB image for one channel or the reverse, without leave to convert; another number of channels.
    """
    check_channels(channels)
    if channels is None or channels == colours:
        return pixels
    if channels == 1 and is_grey(pixels):
        return pixels[..., 0]
    if not convert:
        raise channel_error(path, colours, channels)
    if channels == 1:
        return pixels @ np.asarray(LUMA, dtype=pixels.dtype)
    return np.repeat(pixels[..., None], 3, axis=-1)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether the three channels of ``(..., 3)`` are equal everywhere."""
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def check_channels(channels: int | None) -> None:
    """Refuse a number of channels that no image has.

    Raises:
        UserError: neither ``None`` nor 1 nor 3.
    """
    if channels not in (None, 1, 3):
        raise UserError("channels must be 1 (grey) or 3 (RGB)", channels)


def channel_error(path: str | Path, colours: int, channels: int) -> UserError:
    """The error for a grey image where RGB is asked for, and the reverse."""
    names = {1: "grey", 3: "RGB"}
    how = "by its luma" if channels == 1 else "by repeating its grey"
    article = "an" if colours == 3 else "a"
    return UserError(
        f"images must be {names[channels]} here ({channels} channel{'s' if channels > 1 else ''})",
        f"{path}: {article} {names[colours]} image",
        f"Pass --channels {colours} for {names[colours]} images, or --convert_channels true to convert each {how}",
    )
