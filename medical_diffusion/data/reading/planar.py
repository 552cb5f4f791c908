"""Flat images in formats of volumes, turned to the way they are looked at: rows downwards, columns to the right.

ITK's index (i, j) is column and row, so that MetaImage, NRRD and DICOM only exchange their axes. NIfTI is brought to
RAS first; its second remaining axis then points up. DICOM values are rescaled, and ITK inverts MONOCHROME1 within
BitsStored, so that a high value is bright throughout (DICOM PS3.3, C.7.6.3.1.2); windows (VOI LUT) are not applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medical_diffusion.data.reading.file_errors import as_user_error
from medical_diffusion.data.reading.flat_image import FlatImage, range_of
from medical_diffusion.data.reading.itk import itk_affine

_DICOM_TAGS = (
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "SamplesPerPixel",
)
#: (row, column, 0) to ITK's index (i, j, 0).
_EXCHANGED = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def read_dicom_image(path: Path) -> FlatImage:
    """One DICOM file of one frame, its range from BitsStored.

    Raises:
        UserError: it cannot be read.
    """
    import pydicom
    import SimpleITK as sitk

    with as_user_error(path):
        header: Any = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_DICOM_TAGS), force=True)
        photometric = str(header.get("PhotometricInterpretation") or "")
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        if int(header.get("SamplesPerPixel") or 1) == 1 and photometric != "PALETTE COLOR":
            reader.SetOutputPixelType(sitk.sitkFloat32)  # a rescale slope may be a fraction
        image = reader.Execute()
        pixels, affine = _flat_pixels(image), itk_affine(image) @ _EXCHANGED
        if pixels.ndim == 3:
            return FlatImage(pixels.astype(np.float32), range_of(pixels), affine)
        return FlatImage(np.ascontiguousarray(pixels, dtype=np.float32), _dicom_range(header), affine)


def read_itk_image(path: Path) -> FlatImage:
    """One flat MetaImage or NRRD file, grey or RGB.

    Raises:
        UserError: it cannot be read.
    """
    import SimpleITK as sitk

    with as_user_error(path):
        image = sitk.ReadImage(str(path))
        pixels = _flat_pixels(image)
        limits = range_of(pixels)
        return FlatImage(np.ascontiguousarray(pixels, dtype=np.float32), limits, itk_affine(image) @ _EXCHANGED)


def read_nifti_image(path: Path) -> FlatImage:
    """One flat NIfTI file: of its two axes in RAS order, the first becomes the columns and the second points up.

    Raises:
        UserError: it cannot be read.
    """
    import nibabel

    with as_user_error(path):
        image: Any = nibabel.load(path)
        stored = np.asanyarray(image.dataobj)
        volume = stored.reshape((*(*image.shape, 1)[:2], 1))
        axes = nibabel.io_orientation(image.affine)
        affine = image.affine @ nibabel.orientations.inv_ornt_aff(axes, volume.shape)
        volume = nibabel.apply_orientation(volume, axes)
    thin = int(axes[2, 0])
    across, up = (axis for axis in range(3) if axis != thin)
    pixels = volume.take(0, axis=thin).T[::-1]
    index = np.zeros((4, 4))
    index[across, 1], index[up, 0], index[up, 3], index[thin, 2], index[3, 3] = 1, -1, pixels.shape[0] - 1, 1, 1
    limits = _nifti_range(image, stored)
    return FlatImage(np.ascontiguousarray(pixels, dtype=np.float32), limits, affine @ index)


def _flat_pixels(image: Any) -> np.ndarray:
    """``(rows, columns)`` or ``(rows, columns, 3)`` of an ITK image of two axes, or three with a depth of 1."""
    import SimpleITK as sitk

    pixels = sitk.GetArrayFromImage(image)
    return pixels[0] if image.GetDimension() == 3 else pixels


def _dicom_range(header: Any) -> tuple[float, float]:
    bits = int(header.get("BitsStored") or 16)
    is_signed = int(header.get("PixelRepresentation") or 0) == 1
    ends = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if is_signed else (0.0, 2.0**bits - 1)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    scaled = [end * (1.0 if slope is None else float(slope)) + float(intercept or 0.0) for end in ends]
    return min(scaled), max(scaled)


def _nifti_range(image: Any, pixels: np.ndarray) -> tuple[float, float]:
    """Range of the stored type where it has one, with the header's scaling applied."""
    stored_type = image.get_data_dtype()
    if stored_type not in (np.uint8, np.uint16) or pixels.dtype == stored_type:
        return range_of(pixels)
    slope, inter = image.dataobj.slope, image.dataobj.inter
    ends = [end * slope + inter for end in range_of(np.empty(0, dtype=stored_type))]
    return float(min(ends)), float(max(ends))
