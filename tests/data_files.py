"""Small image files for tests: NIfTI, NRRD, MetaImage and DICOM series, sound and broken."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def voxels(shape: tuple[int, ...] = (6, 7, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def oblique_affine(spacing: tuple[float, float, float] = (0.7, 0.9, 2.5)) -> np.ndarray:
    """RAS+ affine with a rotation about two axes, anisotropic spacing and an origin."""
    a, b = 0.3, -0.2
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = (-12.5, 40.0, 7.25)
    return affine


def write_nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        nibabel.Nifti1Image(voxels() if array is None else array, np.eye(4) if affine is None else affine), path
    )
    return path


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """NRRD or MetaImage by its suffix, of an array in index order (i, j, k) with a RAS+ affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def write_dicom(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    uid: str = "1.2.3.1",
    patient: str = "P1",
    modality: str = "CT",
    skip: tuple[int, ...] = (),
) -> Path:
    """A series of one file a slice, values stored with a rescale intercept of -1024; ``skip`` leaves slices out."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(array.shape[2]):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(array[:, :, k : k + 1].transpose(2, 1, 0).astype(np.int16))
        image.SetSpacing((spacing[0], spacing[1], spacing[2]))
        entries = {
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "CT",
            "0010|0020": patient,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(k),
            "0020|0032": "\\".join(f"{v:.10g}" for v in lps[:3, 3] + k * lps[:3, 2]),
            "0020|0037": "\\".join(f"{v:.10g}" for v in (*axes[:, 0], *axes[:, 1])),
            "0018|0050": f"{spacing[2]:.10g}",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in entries.items():
            image.SetMetaData(tag, value)
        # Names in another order than the slices: the order must come from the positions.
        path = folder / f"{uid}_{(k * 7) % 97:02d}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(image)
        if modality != "CT":  # ITK's writer refuses some of them
            header = pydicom.dcmread(path)
            header.Modality = modality
            header.save_as(path)
    return folder
