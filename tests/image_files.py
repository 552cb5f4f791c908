"""Small flat image files for tests: pictures of known pixels, and DICOM files of chosen photometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def pixels(shape: tuple[int, ...] = (5, 7), dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Random values over the type's full range; odd and unequal sides show an exchange of axes."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def write_picture(path: Path, array: np.ndarray | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if array is None else array).save(path, **options)
    return path


def write_deep(path: Path, array: np.ndarray) -> Path:
    """16-bit pixels with several channels, which Pillow cannot write."""
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))
    return path


def write_dicom_image(path: Path, array: np.ndarray, **entries: Any) -> Path:
    """One uncompressed file of ``(rows, columns)`` or ``(rows, columns, 3)``; ``entries`` replace the header's."""
    data = pydicom.Dataset()
    bits = array.dtype.itemsize * 8
    samples = 3 if array.ndim == 3 else 1
    header = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "Modality": "DX",
        "PatientID": "",
        "Rows": array.shape[0],
        "Columns": array.shape[1],
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": "RGB" if samples == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": int(entries.get("BitsStored", bits)) - 1,
        "PixelRepresentation": int(array.dtype.kind == "i"),
        "PixelData": array.tobytes() + b"\0" * (array.nbytes % 2),
    }
    if samples == 3:
        header["PlanarConfiguration"] = 0
    for name, value in (header | entries).items():
        setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
