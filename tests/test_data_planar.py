"""Flat images in volume formats: rows down as looked at, affines that follow, DICOM photometry."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from data_files import oblique_affine, voxels, write_dicom, write_nifti
from image_files import pixels, write_dicom_image

from medical_diffusion.data import load_volume, read_header, read_image
from medical_diffusion.errors import UserError


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7)])
def test_itk_formats_have_rows_and_columns(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"a.{suffix}"
    stored = sitk.GetImageFromArray(pixels().reshape(shape))
    stored.SetSpacing((0.5, 2.0, 3.0)[: len(shape)])  # columns are 0.5 mm apart, rows 2 mm
    sitk.WriteImage(stored, str(path))
    volume = load_volume(path, allow_planar=True)
    assert volume.shape == (5, 7, 1)
    assert np.array_equal(volume[..., 0].numpy(), pixels())
    assert volume.meta["stored_range"] == (0.0, 255.0)
    assert np.allclose(volume.pixdim[:2], (2.0, 0.5))
    assert np.allclose(volume.affine.numpy() @ (3, 4, 0, 1), [-2.0, -6.0, 0, 1])  # LPS to RAS


def test_itk_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(pixels((5, 7, 3)), isVector=True), str(path))
    header = read_header(path)
    assert (header.shape, header.channels, header.dtype) == ((7, 5), 3, "uint8")
    volume = load_volume(path, allow_planar=True, channels=3)
    assert np.array_equal(volume[:, :, 0].numpy(), pixels((5, 7, 3)))


FLIPS = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "LPS": np.diag([-1.0, -2.0, 3.0, 1.0]),
    "LAS": np.diag([-1.0, 2.0, 3.0, 1.0]),
    "ARS": np.array([[0, 1.0, 0, 5], [2.0, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]]),
    "coronal": np.array([[1.0, 0, 0, 5], [0, 0, 3.0, 6], [0, 2.0, 0, 7], [0, 0, 0, 1]]),
    "oblique": oblique_affine(),
}


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 1, 1)])
@pytest.mark.parametrize("name", FLIPS)
def test_nifti_points_up_along_its_second_axis_in_ras(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array, affine = pixels((6, 7)), FLIPS[name]
    volume = load_volume(write_nifti(tmp_path / "a.nii", array.reshape(shape), affine), allow_planar=True)
    expected = {
        "RAS": array.T[::-1],
        "LPS": array[::-1, ::-1].T[::-1],
        "LAS": array[::-1].T[::-1],
        "ARS": array[::-1],
        "coronal": array.T[::-1],
        "oblique": array.T[::-1],
    }[name]
    assert np.array_equal(volume[..., 0].numpy(), expected)
    # every pixel stays where it lies in space
    place = {int(v): affine @ (*index, 0, 1) for index, v in np.ndenumerate(np.arange(42).reshape(6, 7))}
    numbered = load_volume(
        write_nifti(tmp_path / "b.nii", np.arange(42, dtype=np.uint8).reshape(shape), affine), allow_planar=True
    )
    to_space = numbered.affine.numpy()
    for (row, column, _), value in np.ndenumerate(numbered.numpy()):
        assert np.allclose(to_space @ (row, column, 0, 1), place[int(value)], atol=1e-4)


def test_nifti_ranges(tmp_path: Path) -> None:
    assert read_image(write_nifti(tmp_path / "a.nii", pixels())).stored_range == (0.0, 255.0)
    signed = voxels((5, 7))
    assert read_image(write_nifti(tmp_path / "b.nii", signed)).stored_range == (signed.min(), signed.max())
    image = nibabel.Nifti1Image(pixels(), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "c.nii")
    raw = nibabel.load(tmp_path / "c.nii")
    assert (raw.dataobj.slope, raw.dataobj.inter) == (0.5, 10)
    scaled = read_image(tmp_path / "c.nii")
    assert scaled.stored_range == (10.0, 137.5)
    assert np.allclose(scaled.pixels, raw.get_fdata().T[::-1])


def test_volumes_are_no_flat_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an image must be flat here.*\(6, 7, 5\).*Extract one slice"):
        read_image(write_nifti(tmp_path / "a.nii.gz"))
    assert load_volume(tmp_path / "a.nii.gz", allow_planar=True).shape == (6, 7, 5)
    assert "stored_range" not in load_volume(tmp_path / "a.nii.gz").meta


def test_dicom_range_comes_from_bits_stored(tmp_path: Path) -> None:
    array = pixels(dtype=np.uint16) % 4096
    image = read_image(write_dicom_image(tmp_path / "a.dcm", array, BitsStored=12))
    assert np.array_equal(image.pixels, array)
    assert image.stored_range == (0.0, 4095.0)


def test_dicom_monochrome1_is_inverted(tmp_path: Path) -> None:
    array = pixels(dtype=np.uint16) % 4096
    path = write_dicom_image(tmp_path / "a.dcm", array, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    image = read_image(path)
    assert np.array_equal(image.pixels, 4095 - array.astype(np.float32))
    assert image.stored_range == (0.0, 4095.0)


def test_dicom_rescale_and_sign(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-8192, 8192, (5, 7), dtype=np.int16)
    entries = {"BitsStored": 14, "RescaleSlope": "0.5", "RescaleIntercept": "-100"}
    image = read_image(write_dicom_image(tmp_path / "a.dcm", array, **entries))
    assert np.allclose(image.pixels, array * 0.5 - 100)
    assert image.stored_range == (-8192 * 0.5 - 100, 8191 * 0.5 - 100)
    inverted = read_image(
        write_dicom_image(tmp_path / "b.dcm", array, PhotometricInterpretation="MONOCHROME1", **entries)
    )
    assert np.allclose(inverted.pixels, sum(image.stored_range) - image.pixels)


def test_dicom_colour_and_spacing(tmp_path: Path) -> None:
    colour = pixels((6, 7, 3))
    volume = load_volume(write_dicom_image(tmp_path / "a.dcm", colour), allow_planar=True, channels=3)
    assert np.array_equal(volume[:, :, 0].numpy(), colour)
    assert volume.meta["stored_range"] == (0.0, 255.0)
    # a secondary capture without suffix, read by its preamble; PixelSpacing is (between rows, between columns)
    path = write_dicom_image(tmp_path / "IM1", pixels(), PixelSpacing=[0.4, 0.2])
    grey = load_volume(path, allow_planar=True)
    assert np.array_equal(grey[..., 0].numpy(), pixels())
    assert np.allclose(grey.pixdim[:2], (0.4, 0.2))


def test_dicom_of_several_frames_is_refused(tmp_path: Path) -> None:
    frames = pixels((4, 5, 7))
    path = write_dicom_image(tmp_path / "a.dcm", frames[0], NumberOfFrames=4, PixelData=frames.tobytes())
    with pytest.raises(UserError, match=r"an image must be flat here.*a.dcm of shape \(7, 5, 4\)"):
        read_image(path)


def test_dicom_folder_with_one_slice_is_its_file(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "s", voxels((6, 7, 1)), np.eye(4))
    (file,) = folder.iterdir()
    whole, single = load_volume(folder, allow_planar=True), load_volume(file, allow_planar=True)
    assert whole.shape == (7, 6, 1)
    assert np.array_equal(whole.numpy(), single.numpy())
    assert np.array_equal(whole[..., 0].numpy(), voxels((6, 7, 1))[..., 0].T)


def test_truncated_dicom(tmp_path: Path) -> None:
    path = write_dicom_image(tmp_path / "a.dcm", pixels((64, 64)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"an image file must be readable and complete.*a.dcm"):
        read_image(path)
