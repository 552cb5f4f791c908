"""Discovery: which files are volumes, whose they are, and clear errors where there are none or too many."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from data_files import oblique_affine, voxels, write_dicom, write_itk, write_nifti

from medical_diffusion.data import find_volumes, load_volume
from medical_diffusion.errors import UserError


def subjects(folder: Path) -> dict[str, str]:
    return {v.path.relative_to(folder).as_posix(): v.subject for v in find_volumes(folder)}


def test_all_formats_are_found_in_order(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "b.nii")
    for suffix in ("nrrd", "nhdr", "mha", "mhd"):
        write_itk(tmp_path / f"c_{suffix}.{suffix}", voxels(), np.eye(4))
    write_dicom(tmp_path / "d" / "study" / "series", voxels(), oblique_affine(), patient="Patient7")
    (tmp_path / ".hidden.nii.gz").write_text("x")
    (tmp_path / "readme.txt").write_text("x")
    found = find_volumes(tmp_path)
    kinds = [(v.path.name, v.kind) for v in found]
    assert kinds == [
        ("a.nii.gz", "nifti"),
        ("b.nii", "nifti"),
        ("c_mha.mha", "metaimage"),
        ("c_mhd.mhd", "metaimage"),
        ("c_nhdr.nhdr", "nrrd"),
        ("c_nrrd.nrrd", "nrrd"),
        ("series", "dicom"),
    ]
    assert [v.subject for v in found] == ["a", "b", "c_mha", "c_mhd", "c_nhdr", "c_nrrd", "Patient7"]
    assert all(load_volume(v.path).shape == (6, 7, 5) for v in found)


def test_label_folders_are_left_out_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("images/a", "labels/a", "masks/a", "imagesTr/b", "labelsTr/b"):
        write_nifti(tmp_path / f"{name}.nii.gz")
    with caplog.at_level(logging.INFO):
        assert subjects(tmp_path) == {"images/a.nii.gz": "a", "imagesTr/b.nii.gz": "b"}
    assert "3 files in labels, labelsTr, masks are labels and left out" in caplog.text
    assert subjects(tmp_path / "labels") == {"a.nii.gz": "a"}  # asked for by name, labels are the images


def test_only_labels_is_an_error(tmp_path: Path) -> None:
    write_nifti(tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(UserError, match=r"images beside its labels.*in labels only"):
        find_volumes(tmp_path)


def test_volumes_of_one_folder_or_bids_subject_belong_together(tmp_path: Path) -> None:
    for name in ("p1/t1", "p1/t2", "p2/visit1/t1", "train/p3/t1", "p4", "rawdata/sub-05/ses-1/anat/sub-05_T1w"):
        write_nifti(tmp_path / f"{name}.nii.gz")
    assert subjects(tmp_path) == {
        "p1/t1.nii.gz": "p1",
        "p1/t2.nii.gz": "p1",
        "p2/visit1/t1.nii.gz": "p2",
        "train/p3/t1.nii.gz": "p3",
        "p4.nii.gz": "p4",
        "rawdata/sub-05/ses-1/anat/sub-05_T1w.nii.gz": "sub-05",
    }


def test_a_linked_loop_ends(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a" / "x.nii.gz")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(find_volumes(tmp_path)) == 1


def test_dicom_without_suffix_and_beside_a_segmentation(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "p", voxels(), np.eye(4))
    write_dicom(folder, voxels((6, 7, 1)), np.eye(4), uid="1.2.3.9", modality="SEG")
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"IM{number}")
    (volume,) = find_volumes(tmp_path)
    assert volume.kind == "dicom"
    assert volume.subject == "P1"
    assert load_volume(volume.path).shape == (6, 7, 5)


def test_several_series_in_a_folder(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "p", voxels(), np.eye(4), uid="1.2.3.1")
    write_dicom(folder, voxels(), np.eye(4), uid="1.2.3.2")
    choice = "2 series in .*1.2.3.1 .CT, 5 files.; 1.2.3.2.*folder of its own, or choose one with path and series_uid"
    with pytest.raises(UserError, match=choice):
        find_volumes(tmp_path)
    with pytest.raises(UserError, match=choice):
        load_volume(folder)
    assert load_volume(folder, series_uid="1.2.3.2").shape == (6, 7, 5)
    with pytest.raises(UserError, match=r"chosen DICOM series must be in its folder.*9.9.*1.2.3.1, 1.2.3.2"):
        load_volume(folder, series_uid="9.9")


def test_missing_empty_and_file_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"existing folder.*nowhere"):
        find_volumes(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"must not be empty.*NIfTI"):
        find_volumes(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"must be a folder.*a.txt"):
        find_volumes(tmp_path / "a.txt")


def test_no_readable_image_names_what_is_there_and_what_is_supported(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.csv", "noextension"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"readable images.*2 x .jpg, 1 x .csv, 1 x no suffix.*Supported: NIfTI.*DICOM"):
        find_volumes(tmp_path)
