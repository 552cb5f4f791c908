"""Reading volumes: nibabel for NIfTI, SimpleITK for NRRD, MetaImage and DICOM series, NumPy stacks; images as depth 1.

Volumes come in index order ``(i, j, k)`` with an affine from that index to millimetres in RAS+; flat images, where they
are welcome, as ``(rows, columns, 1)`` the way they are looked at. A library's error becomes a ``UserError`` that names
the file.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from medical_diffusion.data.checks import header_faults, raise_faults
from medical_diffusion.data.reading.array_images import is_array_volume, read_array_volume
from medical_diffusion.data.reading.file_errors import as_user_error
from medical_diffusion.data.reading.flat_image import STORED_RANGE, check_channels, match_channels
from medical_diffusion.data.reading.formats import is_nifti
from medical_diffusion.data.reading.headers import read_header
from medical_diffusion.data.reading.images import read_image
from medical_diffusion.data.reading.itk import SimpleITKReader


def load_volume(
    path: str | Path,
    series_uid: str | None = None,
    allow_planar: bool = False,
    channels: int | None = None,
    convert_channels: bool = False,
) -> MetaTensor:
    """One volume as float32 ``(H, W, D)`` with its RAS+ affine, in stored units (HU for CT).

    A flat image is ``(rows, columns, 1)``, or ``(rows, columns, 1, 3)`` for RGB, with the range of its stored type in
    ``meta["stored_range"]`` and an identity affine where its file has none.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM file, a folder that holds a DICOM series, or a flat image.
        series_uid: which series of a DICOM folder.
        allow_planar: accept an image of depth 1.
        channels: 1 (grey) or 3 (RGB), what the model takes; ``None`` takes what the file holds. RGB with three equal
            channels counts as grey.
        convert_channels: convert RGB to grey (Rec. 601 luma) and grey to RGB rather than refuse it.

    Raises:
        UserError: missing, truncated or of another format than its name says, not three-dimensional, singular affine,
            RGB where grey is asked for or the reverse.
    """
    path = Path(path)
    check_channels(channels)
    header = read_header(path, series_uid)
    faults = header_faults(path, header, allow_planar)
    raise_faults(faults, "a volume must be valid", "`medical_diffusion data verify` lists the faults of a whole folder")
    meta: dict[str, Any] = {}
    if header.spatial_shape[2] == 1:
        image = read_image(path, series_uid)
        voxels, affine, colours = image.pixels[:, :, None], image.affine, image.pixels.ndim == 3
        meta[STORED_RANGE] = image.stored_range
    elif is_array_volume(path):
        voxels = np.asarray(read_array_volume(path), dtype=np.float32)
        affine, colours = header.affine, False
    else:
        reader = NibabelReader() if is_nifti(path) else SimpleITKReader(series_uid)
        with as_user_error(path):
            # Not through LoadImage: it builds every reader it knows at each call, GPU ones with warnings included.
            stored, _ = reader.get_data(reader.read(str(path)))
        voxels = np.asarray(stored, dtype=np.float32, order="C").reshape(header.spatial_shape)
        affine, colours = header.affine, False
    voxels = match_channels(voxels, 3 if colours else 1, channels, convert_channels, path)
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(voxels)),
        affine=torch.as_tensor(affine, dtype=torch.float64),
        meta=meta
        | {
            MetaKeys.ORIGINAL_AFFINE: affine,
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(voxels.shape[:3]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if voxels.ndim == 4 else float("nan"),
            "filename_or_obj": str(path),
        },
    )


class LoadVolumed(MapTransform):
    """Replace paths by volumes: float32 ``MetaTensor`` of shape ``(H, W, D)``; ``EnsureChannelFirstd`` comes next.

    An item's ``series_uid``, where it has one, chooses the series of a DICOM folder.

    Args:
        keys: keys of the items that hold a path.
        allow_planar: accept images of depth 1 (2D work), ``(rows, columns, 1)`` or ``(rows, columns, 1, 3)``.
        channels, convert_channels: as of ``load_volume``.

    Raises:
        UserError: as ``load_volume``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_planar: bool = False,
        channels: int | None = None,
        convert_channels: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_channels(channels)
        self.allow_planar = allow_planar
        self.channels, self.convert_channels = channels, convert_channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its volume."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = load_volume(
                item[key], item.get("series_uid"), self.allow_planar, self.channels, self.convert_channels
            )
        return item


def is_intact(path: str | Path) -> bool:
    """Whether a file is as long as its header says, without reading it all where that can be avoided.

    A gzip file ends with its uncompressed length: where that differs from the header's, the file is decompressed to
    be sure. Formats other than NIfTI are not examined and count as intact.
    """
    if not is_nifti(path):
        return True
    import nibabel

    with as_user_error(Path(path)):
        image: Any = nibabel.load(path)
        expected = int(image.dataobj.offset + np.prod(image.shape, dtype=np.int64) * image.get_data_dtype().itemsize)
    if not str(path).lower().endswith(".gz"):
        return os.path.getsize(path) >= expected
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        stated = int.from_bytes(file.read(4), "little")
    return stated == expected % 2**32 or _decompressed_length(path) >= expected


def has_valid_checksum(path: str | Path) -> bool:
    """Whether a gzip file's content agrees with its checksum (nibabel does not look); other files count as valid."""
    return not str(path).lower().endswith(".gz") or _decompressed_length(path) >= 0


def _decompressed_length(path: str | Path) -> int:
    """Bytes in a gzip file, or -1 where it is damaged."""
    length = 0
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 20):
                length += len(block)
    except (OSError, EOFError, zlib.error):
        return -1
    return length
