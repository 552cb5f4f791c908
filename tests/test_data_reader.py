"""Reading: every format gives the same voxels and RAS+ affine as nibabel; bad files give one clear error."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_files import oblique_affine, voxels, write_dicom, write_itk, write_nifti
from monai.data import MetaTensor, NibabelReader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, Orientationd

from medical_diffusion.data import LoadVolumed, SimpleITKReader, load_volume, read_header
from medical_diffusion.errors import UserError

AFFINES = {
    "oblique": oblique_affine(),
    "flipped": np.array([[-0.8, 0, 0, 10], [0, -1.1, 0, 20], [0, 0, 3.0, -30], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, 2.0, 1], [1.5, 0, 0, 2], [0, 0.5, 0, 3], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_simpleitk_and_nibabel_read_the_same_nifti_alike(tmp_path: Path, name: str) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", voxels(), AFFINES[name])
    nib, itk = NibabelReader(), SimpleITKReader()
    array, meta = nib.get_data(nib.read(str(path)))
    other, other_meta = itk.get_data(itk.read(str(path)))
    assert np.array_equal(array, other)
    assert np.allclose(meta["affine"], other_meta["affine"], atol=1e-4)


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("name", AFFINES)
def test_itk_formats_equal_nifti(tmp_path: Path, suffix: str, name: str) -> None:
    array, affine = voxels(), AFFINES[name]
    volume = load_volume(write_itk(tmp_path / f"a.{suffix}", array, affine))
    reference = load_volume(write_nifti(tmp_path / "a.nii", array, affine))
    assert isinstance(volume, MetaTensor)
    assert volume.dtype == torch.float32
    assert torch.equal(volume.as_tensor(), reference.as_tensor())
    assert torch.allclose(volume.affine, reference.affine, atol=1e-4)
    assert np.allclose(volume.affine, affine, atol=1e-4)


@pytest.mark.parametrize("name", ["oblique", "flipped"])
def test_dicom_series_in_position_order_with_rescaled_values(tmp_path: Path, name: str) -> None:
    array, affine = voxels((6, 7, 5)), AFFINES[name]
    volume = load_volume(write_dicom(tmp_path / "series", array, affine))
    if np.linalg.det(affine[:3, :3]) < 0:  # slices are ordered along the normal of the plane
        array, affine = (
            array[:, :, ::-1],
            affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 4.0], [0, 0, 0, 1]]),
        )
    assert np.array_equal(volume.numpy(), array)
    assert np.allclose(volume.affine, affine, atol=1e-4)


def test_gantry_tilt_keeps_its_sheared_affine(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 0.8  # the table moves along another direction than the slice normal
    folder = tmp_path / "tilted"
    array = voxels((4, 4, 3))
    straight = affine.copy()
    for k in range(3):
        straight[:3, 3] = affine[:3, 2] * k
        write_dicom(folder, array[:, :, k : k + 1], straight, uid="1.2.9")
        for file in folder.glob("1.2.9_00.dcm"):
            file.rename(folder / f"{k}.dcm")
    volume = load_volume(folder)
    assert volume.shape == (4, 4, 3)
    order = 1 if np.allclose(volume.affine[:3, 2], affine[:3, 2], atol=1e-4) else -1
    assert np.allclose(volume.affine[:3, 2] * order, affine[:3, 2], atol=1e-4)
    assert np.array_equal(volume.numpy(), array[:, :, ::order])


def test_registers_with_monai_load_image(tmp_path: Path) -> None:
    path = write_itk(tmp_path / "a.mha", voxels(), oblique_affine())
    image = LoadImage(reader=SimpleITKReader, image_only=True)(path)
    assert torch.equal(image.as_tensor(), load_volume(path).as_tensor())
    assert np.allclose(image.affine, oblique_affine(), atol=1e-4)


def test_several_files_stack_as_channels(tmp_path: Path) -> None:
    paths = [write_itk(tmp_path / f"{n}.nrrd", voxels(seed=n), np.eye(4)) for n in range(2)]
    reader = SimpleITKReader()
    array, meta = reader.get_data(reader.read(paths))
    assert array.shape == (2, 6, 7, 5)
    assert meta["original_channel_dim"] == 0
    assert np.array_equal(array[1], voxels(seed=1))


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd"])
def test_transform_chain(tmp_path: Path, suffix: str) -> None:
    affine = AFFINES["flipped"]
    path = tmp_path / f"a.{suffix}"
    (write_nifti if suffix == "nii.gz" else write_itk)(path, voxels(), affine)
    chain = Compose([LoadVolumed("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)])
    image = chain({"image": str(path), "subject": "s"})["image"]
    assert image.shape == (1, 6, 7, 5)
    assert np.allclose(np.linalg.norm(image.affine[:3, :3], axis=0), (0.8, 1.1, 3.0), atol=1e-5)
    assert np.array_equal(image[0].numpy(), voxels()[::-1, ::-1])


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 1, 1)])
def test_planar_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", voxels(shape))
    with pytest.raises(UserError, match=r"more than one slice.*a.nii.gz: a 2D image"):
        load_volume(path)
    image = LoadVolumed("image", allow_planar=True)({"image": path})["image"]
    assert image.shape == (7, 6, 1)  # as it is looked at: the second axis of RAS points up
    assert np.array_equal(image[:, :, 0].numpy(), voxels(shape).reshape(6, 7).T[::-1])
    assert EnsureChannelFirstd("image")({"image": image})["image"].shape == (1, 7, 6, 1)


def test_trailing_axis_of_one_is_dropped_and_big_endian_is_read(tmp_path: Path) -> None:
    assert load_volume(write_nifti(tmp_path / "a.nii.gz", voxels((4, 5, 6, 1)))).shape == (4, 5, 6)
    image = nibabel.Nifti1Image(voxels(), np.eye(4), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, tmp_path / "big.nii")
    assert np.array_equal(load_volume(tmp_path / "big.nii").numpy(), voxels())


def test_4d_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"three axes.*4D data of shape \(4, 5, 6, 2\)"):
        load_volume(write_nifti(tmp_path / "a.nii.gz", voxels((4, 5, 6, 2))))
    colour = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "rgb.nrrd"))
    with pytest.raises(UserError, match=r"three axes.*shape \(5, 4, 3, 3\)"):
        load_volume(tmp_path / "rgb.nrrd")


def test_singular_and_nan_affines_are_refused(tmp_path: Path) -> None:
    singular = np.diag([1.0, 1.0, 0.0, 1.0])
    image = nibabel.Nifti1Image(voxels(), None)
    image.header.set_sform(singular, code=1)
    nibabel.save(image, tmp_path / "singular.nii.gz")
    with pytest.raises(UserError, match=r"the affine must be invertible.*singular.nii.gz"):
        load_volume(tmp_path / "singular.nii.gz")
    image.header["srow_x"] = np.nan
    image.header["sform_code"] = 1
    nibabel.save(nibabel.Nifti1Image(voxels(), None, image.header), tmp_path / "nan.nii.gz")
    with pytest.raises(UserError, match=r"the affine must be finite.*nan.nii.gz"):
        load_volume(tmp_path / "nan.nii.gz")


def _truncated(path: Path, fraction: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    array = voxels((20, 20, 20))
    write_nifti(path, array) if "nii" in suffix else write_itk(path, array, np.eye(4))
    with pytest.raises(UserError, match=rf"complete\. Received: .*a\.{suffix} .*Copy or download the file again"):
        load_volume(_truncated(path))


def test_truncated_dicom_slice(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "s", voxels((32, 32, 3)), np.eye(4))
    _truncated(sorted(folder.iterdir())[1], 0.8)
    with pytest.raises(UserError, match=r"readable and complete"):
        load_volume(folder)


def test_text_named_nifti_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "note.nii.gz"
    path.write_text("not an image " * 50)
    with pytest.raises(UserError, match=r"of the format that its name says.*note.nii.gz.*not a gzip file"):
        load_volume(path)
    path.write_bytes(gzip.compress(b"not an image " * 50))
    with pytest.raises(UserError, match=r"of the format that its name says"):
        read_header(path)
    (tmp_path / "note.nrrd").write_text("not an image")
    with pytest.raises(UserError, match=r"readable and complete.*note.nrrd"):
        load_volume(tmp_path / "note.nrrd")
    with pytest.raises(UserError, match=r"must exist.*gone.nii.gz"):
        load_volume(tmp_path / "gone.nii.gz")


def test_chest_ct_is_in_hounsfield_units(data_folder: Path) -> None:
    path = data_folder / "ct_chest" / "images" / "LIDC-IDRI-0314.nii.gz"
    volume = load_volume(path)
    assert volume.shape == (200, 156, 137)
    assert -1100 < volume.min() < -900
    assert 1000 < volume.max() < 3100
    assert np.allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), 2.0, atol=1e-3)
    itk, affine = SimpleITKReader().read(str(path))
    assert np.allclose(affine, volume.affine, atol=1e-3)
    assert np.array_equal(sitk.GetArrayFromImage(itk).transpose(2, 1, 0), volume.numpy())
