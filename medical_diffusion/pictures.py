"""Pictures of volumes and images in a labelled grid, as RGB arrays and PNG files.

A volume is shown by its central slices in three planes, an image (depth 1) as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medical_diffusion.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

LABEL_HEIGHT = 18
GAP = 3
SMALLEST_TILE = 128
MARGIN_GREY = 24
TEXT_GREY = 220
COLOURS = 3


def to_grey(volume: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values in [low, high] as bytes 0 to 255."""
    scaled = (np.asarray(volume, dtype=np.float32) - low) / max(high - low, 1e-12)
    return (np.clip(np.nan_to_num(scaled), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def planes(
    volume: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0), at: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Central axial, coronal and sagittal slices of a RAS+ volume as a radiologist holds them; an image as it is.

    Args:
        volume: (H, W, D) with axes running right, anterior, superior; an image is (H, W, 1) or, in colour,
            (H, W, 1, 3), with rows running down.
        spacing: millimetres per voxel; slices are stretched to square pixels.
        at: voxel that the three slices share, the centre by default.

    Returns:
        pictures (rows, columns) or (rows, columns, 3); the patient's right is on the left, anterior (or superior) on
        top.
    """
    h, w, d = volume.shape[:3]
    if d == 1:
        return [volume[:, :, 0]]
    i, j, k = (h // 2, w // 2, d // 2) if at is None else at
    axial = _upright(volume[:, :, k], spacing[0], spacing[1])
    coronal = _upright(volume[:, j, :], spacing[0], spacing[2])
    sagittal = _upright(volume[i, :, :], spacing[1], spacing[2], flip=True)
    return [axial, coronal, sagittal]


def _upright(plane: np.ndarray, across: float, up: float, flip: bool = True) -> np.ndarray:
    picture = plane.T[::-1]
    picture = picture[:, ::-1] if flip else picture
    small = min(across, up)
    rows = max(1, round(picture.shape[0] * up / small))
    columns = max(1, round(picture.shape[1] * across / small))
    row_index = np.minimum((np.arange(rows) + 0.5) * picture.shape[0] / rows, picture.shape[0] - 1).astype(int)
    column_index = np.minimum((np.arange(columns) + 0.5) * picture.shape[1] / columns, picture.shape[1] - 1).astype(int)
    return picture[row_index][:, column_index]


def picture_of(volume: Tensor) -> np.ndarray:
    """A tensor (C, H, W, D) as the (H, W, D) that :func:`planes` takes, or (H, W, 1, 3) where C is 3."""
    array = volume.detach().float().cpu().numpy()
    return np.moveaxis(array, 0, -1) if len(array) == COLOURS else array[0]


def volume_grid(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    value_range: tuple[float, float],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """A labelled picture with one band per row of volumes.

    Args:
        rows: (label, volumes as in :func:`planes`); the planes of each volume stand below one another.
        value_range: values shown as black and white.
        spacing: millimetres per voxel.

    Returns:
        RGB bytes (height, width, 3).
    """
    grey = [
        (label, [[to_grey(p, *value_range) for p in planes(np.asarray(v), spacing)] for v in volumes])
        for label, volumes in rows
    ]
    return tile_grid(grey)


def tile_grid(rows: Sequence[tuple[str, Sequence[Sequence[np.ndarray]]]]) -> np.ndarray:
    """A labelled picture with one band per row of columns of tiles.

    Args:
        rows: (label, columns); each column holds as many tiles, of bytes (rows, columns) or (rows, columns, 3).

    Returns:
        RGB bytes (height, width, 3).
    """
    bands = [_band(label, [[_enlarge(tile) for tile in column] for column in columns]) for label, columns in rows]
    width = max(band.shape[1] for band in bands)
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), constant_values=MARGIN_GREY) for b in bands]
    return np.concatenate(padded, axis=0)


def _enlarge(plane: np.ndarray) -> np.ndarray:
    """Whole-number enlargement, so that voxels stay what they are."""
    factor = max(1, -(-SMALLEST_TILE // max(plane.shape[:2])))
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


def _band(label: str, tiles: list[list[np.ndarray]]) -> np.ndarray:
    from PIL import Image, ImageDraw

    tile_rows = len(tiles[0])
    heights = [max(column[r].shape[0] for column in tiles) for r in range(tile_rows)]
    widths = [max(tile.shape[1] for tile in column) for column in tiles]
    height = LABEL_HEIGHT + sum(heights) + GAP * tile_rows
    width = max(sum(widths) + GAP * len(widths), 7 * len(label) + 12)
    canvas = np.full((height, width, 3), MARGIN_GREY, dtype=np.uint8)
    x = 0
    for column, column_width in zip(tiles, widths, strict=True):
        y = LABEL_HEIGHT
        for tile, row_height in zip(column, heights, strict=True):
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile if tile.ndim == 3 else tile[..., None]
            y += row_height + GAP
        x += column_width + GAP
    picture = Image.fromarray(canvas)
    ImageDraw.Draw(picture).text((4, 3), label, fill=(TEXT_GREY,) * 3)
    return np.asarray(picture)


def write_png(path: str | Path, picture: np.ndarray) -> Path:
    """Write a picture (rows, columns) or (rows, columns, 3) of type uint8 or uint16 as PNG."""

    def save(part: Path) -> None:
        if picture.dtype == np.uint16 and picture.ndim == 3:  # Pillow has no 16-bit colour
            import SimpleITK as sitk

            writer = sitk.ImageFileWriter()
            writer.SetImageIO("PNGImageIO")
            writer.SetFileName(str(part))
            writer.Execute(sitk.GetImageFromArray(picture, isVector=True))
        else:
            from PIL import Image

            Image.fromarray(picture).save(part, format="PNG")

    return write_atomically(path, save)


def read_png(path: str | Path) -> np.ndarray:
    """What :func:`write_png` wrote, shape and type alike."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO"))
