"""Images and volumes in NumPy files; only the header is read to learn shape and type, pickled objects never are.

Flat images, ``.npy`` and ``.npz`` with one array: (H, W), (H, W, 1) or (1, H, W), (H, W, 3) for RGB. Volumes, ``.npy``:
(slices, rows, columns) as MRNet has them, taken as sagittal slices. The file states neither voxel size nor direction,
so that both are assumed: 1 mm, rows downwards, columns to the back, slices to the left.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from medical_diffusion.data.checks import VolumeHeader
from medical_diffusion.data.reading.file_errors import as_user_error, check_pixel_count
from medical_diffusion.data.reading.flat_image import FlatImage
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

#: (row, column, slice) to millimetres in RAS+: rows run down, columns to the back, slices to the left.
SAGITTAL = np.array([[0.0, 0, -1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])


def read_array_header(path: Path) -> VolumeHeader:
    """Rows, columns, channels and type, without the pixels; rows, columns, slices of a volume.

    Raises:
        UserError: not a NumPy file, several arrays, no image or volume, or no plain numbers.
    """
    with as_user_error(path), _array_stream(path) as stream:
        shape, dtype = _header(stream)
    if dtype.kind not in "biuf":
        raise UserError("an array of pixels must hold real numbers", f"{path} with {dtype}", "Save it as plain numbers")
    if path.suffix.lower() == ".npy" and _is_stack(shape):
        return VolumeHeader((*shape[1:], shape[0]), SAGITTAL, dtype.name)
    rows, columns, channels = _layout(path, shape)
    return VolumeHeader((rows, columns), np.eye(4), dtype.name, channels)


def read_array_image(path: Path) -> FlatImage:
    """The image of an array file.

    Raises:
        UserError: as ``read_array_header``; a volume; a file that ends early; too many pixels.
    """
    header = read_array_header(path)
    if header.spatial_shape[2] > 1:
        _layout(path, (header.shape[2], *header.shape[:2]))
    check_pixel_count(path, header.shape[0] * header.shape[1])
    with as_user_error(path), _array_stream(path) as stream:
        array = npy_format.read_array(stream, allow_pickle=False)
    return FlatImage.of(array.reshape(*header.shape, *((3,) if header.channels == 3 else ())))


def read_array_volume(path: Path) -> np.ndarray:
    """The volume of a ``.npy`` file as (rows, columns, slices), whose affine is :data:`SAGITTAL`.

    Raises:
        UserError: not a stack of slices; a file that ends early.
    """
    header = read_array_header(path)
    if header.spatial_shape[2] == 1:
        rule = "a volume in an array file must be (slices, rows, columns)"
        raise UserError(rule, f"{path}, a flat image of {header.shape}", "Use a bundle for images (depth 1)")
    _say_what_is_assumed()
    with as_user_error(path), _array_stream(path) as stream:
        array = npy_format.read_array(stream, allow_pickle=False)
    return np.moveaxis(array, 0, -1)


def is_array_volume(path: Path) -> bool:
    """Whether a file is a ``.npy`` that holds a stack of slices, by its header; ``False`` where it cannot be read."""
    if path.suffix.lower() != ".npy":
        return False
    try:
        with path.open("rb") as stream:
            return _is_stack(_header(stream)[0])
    except (OSError, ValueError):
        return False


def _is_stack(shape: tuple[int, ...]) -> bool:
    """Whether an array is (slices, rows, columns) rather than an image with colours or an axis of 1."""
    return len(shape) == 3 and shape[0] > 3 and shape[2] > 3


@functools.cache
def _say_what_is_assumed() -> None:
    """Once a process."""
    logger.info(
        "NumPy volumes state no geometry: taking sagittal slices of 1 mm, rows downwards, columns to the back, slices "
        "to the left (said once)."
    )


@contextmanager
def _array_stream(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of the one array in a file."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1:
            shapes = []
            for name in names:
                with archive.open(name) as member:
                    shapes.append(f"{name.removesuffix('.npy')} {_header(member)[0]}")
            raise UserError(
                "an .npz file must hold one array, the image",
                f"{path} with {len(names)}: {', '.join(shapes) or 'no array'}",
                _how_to_split("numpy.load(FILE)[NAME]"),
            )
        with archive.open(names[0]) as stream:
            yield stream


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy_format.read_magic(stream)
    # The second version differs by a longer header; the third's, with unicode field names, has no plain numbers.
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _layout(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(rows, columns, channels) of an array shape."""
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape[0], shape[1], shape[2]
    if len(shape) == 3 and shape[0] == 1:
        return shape[1], shape[2], 1
    many = len(shape) > 2
    raise UserError(
        "an array file must hold one image: (rows, columns) for grey, (rows, columns, 3) for RGB",
        f"{path} of shape {shape}" + (", a stack of images or another order of axes" if many else ""),
        _how_to_split("numpy.load(FILE)") if many else "Save one image to a file",
    )


def _how_to_split(source: str) -> str:
    save = 'numpy.save(f"image_{i:06d}.npy", image)'
    return f"Save each image to a file of its own: for i, image in enumerate({source}): {save}"
