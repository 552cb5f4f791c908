"""File formats by name: which files are volumes, which are flat images, and what a file is called without its suffix.

A flat image (PNG, JPEG, TIFF, an array file) counts where two-dimensional work asks for it only: beside volumes it is
a thumbnail or a figure. An array file counts as a volume where it holds a stack of slices.
"""

from __future__ import annotations

from pathlib import Path

from medical_diffusion.data.reading.array_images import is_array_volume
from medical_diffusion.data.reading.dicom import is_dicom

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npy", ".npz")
FIRST_CHANNEL = "_0000"
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUPPORTED = (
    "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM series in folders, NumPy stacks "
    "of slices (.npy)"
)
SUPPORTED_IMAGES = (
    "PNG, JPEG, TIFF, NumPy (.npy, .npz with one array), DICOM files, and two-dimensional NIfTI, NRRD and MetaImage"
)
_VOLUME_KINDS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}
_IMAGE_KINDS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".npy": "numpy",
    ".npz": "numpy",
}
_DICOM_SUFFIXES = {".dcm", ".dicom", ".ima"}


def kind_of(path: Path, planar: bool = False) -> str | None:
    """Kind of an image by the name of its file, or by the preamble for DICOM; ``None`` where it is none.

    Args:
        planar: flat image files count.
    """
    name = path.name.lower()
    for suffix, kind in _VOLUME_KINDS.items():
        if name.endswith(suffix):
            return kind
    suffix = path.suffix.lower()
    if planar and suffix in _IMAGE_KINDS:
        return _IMAGE_KINDS[suffix]
    if is_array_volume(path):
        return "numpy"
    return "dicom" if is_dicom_name(path) else None


def is_dicom_name(path: Path) -> bool:
    """Whether a file is DICOM by its suffix, or by its preamble where the name has none."""
    suffix = path.suffix.lower()
    if suffix in _DICOM_SUFFIXES:
        return True
    return (suffix == "" or suffix[1:].isdigit()) and path.name.lower() != "dicomdir" and is_dicom(path)


def is_flat_format(path: str | Path) -> bool:
    """Whether a file is of a format that holds flat images only, by its name."""
    return Path(path).suffix.lower() in _IMAGE_KINDS


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def stem_of(path: Path) -> str:
    """Name of a file without its suffix, ``.nii.gz`` included; a folder keeps all of its name, which may be a UID."""
    if path.is_dir():
        return path.name
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def first_channel(path: Path) -> Path:
    """The file that nnU-Net calls ``case_0000.nii.gz`` where a list says ``case.nii.gz``."""
    stem = stem_of(path)
    return path.with_name(f"{stem}{FIRST_CHANNEL}{path.name[len(stem) :]}")


def supported(planar: bool = False) -> str:
    """The formats that can be read, for messages."""
    return SUPPORTED_IMAGES if planar else SUPPORTED
