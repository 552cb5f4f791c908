"""Splits by subject: nothing leaks, order does not matter, few subjects are enough; the data list on top of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_files import voxels, write_nifti

from medical_diffusion.data import build_datalist, split_subjects
from medical_diffusion.errors import UserError


def counts(parts: dict[str, str]) -> tuple[int, int, int]:
    names = list(parts.values())
    return names.count("train"), names.count("validation"), names.count("test")


@pytest.mark.parametrize(
    ("n", "expected"),
    [(2, (1, 1, 0)), (3, (2, 1, 0)), (9, (8, 1, 0)), (10, (8, 1, 1)), (156, (124, 16, 16)), (1010, (808, 101, 101))],
)
def test_sizes(n: int, expected: tuple[int, int, int]) -> None:
    assert counts(split_subjects(f"s{i}" for i in range(n))) == expected


def test_order_and_repeats_do_not_matter_and_salt_does() -> None:
    subjects = [f"s{i}" for i in range(50)]
    parts = split_subjects(subjects)
    assert split_subjects(subjects[::-1] + subjects) == parts
    assert split_subjects(subjects, salt="other") != parts


def test_adding_subjects_moves_few() -> None:
    before = split_subjects(f"s{i}" for i in range(200))
    after = split_subjects(f"s{i}" for i in range(210))
    moved = sum(before[s] != after[s] for s in before)
    assert moved <= 10


def test_no_test_part_on_request_and_few_subjects_say_so(caplog: pytest.LogCaptureFixture) -> None:
    assert counts(split_subjects((f"s{i}" for i in range(50)), test_fraction=0)) == (45, 5, 0)
    with caplog.at_level("INFO"):
        split_subjects(["a", "b"])
    assert "Only 2 subjects: no test part" in caplog.text


def test_too_few_subjects_and_bad_fractions() -> None:
    with pytest.raises(UserError, match=r"at least 2 subjects.*1 \(a\)"):
        split_subjects(["a", "a"])
    with pytest.raises(UserError, match=r"leave a subject to train on.*2 subjects, 2 for validation"):
        split_subjects(["a", "b"], validation_fraction=0.9, test_fraction=0)
    for fractions in ((0.0, 0.1), (0.5, 0.5), (0.1, -0.1), (1.0, 0.0)):
        with pytest.raises(UserError, match=r"validation_fraction must be in \(0, 1\)"):
            split_subjects("abc", *fractions)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for subject in range(12):
        for scan in range(2):
            write_nifti(tmp_path / "data" / f"p{subject:02d}" / f"scan{scan}.nii.gz", voxels(seed=2 * subject + scan))
    return tmp_path / "data"


def test_datalist_holds_every_volume_once_and_leaks_no_subject(folder: Path) -> None:
    data = build_datalist(folder)
    parts = [{item["subject"] for item in part} for part in (data.train, data.validation, data.test)]
    assert [len(p) for p in parts] == [10, 1, 1]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    images = [item["image"] for item in data.train + data.validation + data.test]
    assert len(images) == len(set(images)) == 24
    assert data == build_datalist(folder)


def test_fingerprint_follows_content_and_split_not_place(folder: Path, tmp_path: Path) -> None:
    first = build_datalist(folder).fingerprint
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    assert build_datalist(copied).fingerprint == first
    assert build_datalist(copied, salt="other").fingerprint != first
    assert build_datalist(copied, validation_fraction=0.3).fingerprint != first
    changed = voxels(seed=0)
    changed[3, 3, 3] += 1
    write_nifti(copied / "p00" / "scan0.nii.gz", changed)
    assert build_datalist(copied).fingerprint != first


def test_one_subject_is_not_enough(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"at least 2 subjects"):
        build_datalist(tmp_path)


def test_two_subjects_are_enough(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "b.nii.gz")
    data = build_datalist(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (1, 1, 0)
    assert "train 1 volumes of 1 subjects" in str(data)
