"""What a file says about its image before its voxels are read, for every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medical_diffusion.data.checks import VolumeHeader
from medical_diffusion.data.reading.array_images import read_array_header
from medical_diffusion.data.reading.dicom import choose_series
from medical_diffusion.data.reading.file_errors import as_user_error
from medical_diffusion.data.reading.formats import ARRAY_SUFFIXES, PILLOW_SUFFIXES, is_nifti
from medical_diffusion.data.reading.itk import itk_affine, itk_dtype
from medical_diffusion.data.reading.pillow_images import read_pillow_header


def read_header(path: str | Path, series_uid: str | None = None) -> VolumeHeader:
    """Shape, affine and stored type of a volume or flat image, without its voxels.

    Args:
        path: a volume file, a flat image, or a folder that holds a DICOM series.
        series_uid: which series of a DICOM folder.

    Raises:
        UserError: the file is missing, is not what its name says, or holds several flat images.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PILLOW_SUFFIXES:
        return read_pillow_header(path)
    if suffix in ARRAY_SUFFIXES:
        return read_array_header(path)
    with as_user_error(path):
        if is_nifti(path):
            import nibabel

            image: Any = nibabel.load(path)
            return VolumeHeader(tuple(image.shape), np.array(image.affine, dtype=float), image.get_data_dtype().name)
        if path.is_dir():
            series = choose_series(path, series_uid)
            return _with_colours(series.shape[:3], series.slices[0].samples, series.affine, "float32")
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        components, dtype = reader.GetNumberOfComponents(), itk_dtype(reader.GetPixelID())
        return _with_colours(tuple(reader.GetSize()), components, itk_affine(reader), dtype)


def _with_colours(shape: tuple[int, ...], components: int, affine: np.ndarray, dtype: str) -> VolumeHeader:
    """Three components of a flat image are colours; of a volume, components stay an axis and a fault."""
    if components == 1:
        return VolumeHeader(shape, affine, dtype)
    spatial = (*shape, 1, 1)[:3]
    if components == 3 and spatial[2] == 1:
        return VolumeHeader(shape, affine, dtype, channels=3)
    return VolumeHeader((*spatial, components), affine, dtype)
