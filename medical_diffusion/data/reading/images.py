"""Reading one flat image, whichever its format: grey ``(H, W)`` or RGB ``(H, W, 3)``, rows downwards as looked at."""

from __future__ import annotations

from pathlib import Path

from medical_diffusion.data.checks import header_faults, raise_faults
from medical_diffusion.data.reading.array_images import read_array_image
from medical_diffusion.data.reading.dicom import choose_series
from medical_diffusion.data.reading.file_errors import check_pixel_count
from medical_diffusion.data.reading.flat_image import FlatImage
from medical_diffusion.data.reading.formats import ARRAY_SUFFIXES, PILLOW_SUFFIXES, is_dicom_name, is_nifti
from medical_diffusion.data.reading.headers import read_header
from medical_diffusion.data.reading.pillow_images import read_pillow_image
from medical_diffusion.data.reading.planar import read_dicom_image, read_itk_image, read_nifti_image
from medical_diffusion.errors import UserError


def read_image(path: str | Path, series_uid: str | None = None) -> FlatImage:
    """Pixels in stored units as float32, the range of the stored type, and the affine where the file has one.

    Args:
        path: PNG, JPEG, TIFF, ``.npy``, ``.npz`` with one array, a DICOM file or a folder with one, or a flat NIfTI,
            NRRD or MetaImage file.
        series_uid: which series of a DICOM folder.

    Raises:
        UserError: missing, truncated, of another format than its name says; several pages, frames, arrays or slices;
            more pixels than Pillow's guard allows (said before anything is decoded).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PILLOW_SUFFIXES:
        return read_pillow_image(path)
    if suffix in ARRAY_SUFFIXES:
        return read_array_image(path)
    header = read_header(path, series_uid)
    raise_faults(header_faults(path, header, allow_planar=True), "an image must be valid", "Correct or remove it")
    rows, columns, depth = header.spatial_shape
    if depth > 1:
        raise UserError("an image must be flat here", f"{path} of shape {header.shape}", "Extract one slice to a file")
    check_pixel_count(path, rows * columns)
    if path.is_dir():
        return read_dicom_image(choose_series(path, series_uid).slices[0].path)
    if is_nifti(path):
        return read_nifti_image(path)
    return read_dicom_image(path) if is_dicom_name(path) else read_itk_image(path)
