"""Manifests: schema, layout, explicit files; and nothing outside dataset_dir."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import voxels, write_dicom, write_nifti

from medical_diffusion.data import build_datalist, find_volumes, load_manifest
from medical_diffusion.data.listing.manifest import packaged_manifests
from medical_diffusion.errors import UserError

BASE: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "version": "1",
    "licence": "CC0",
    "source": {"url": "https://example.org"},
    "modality": "CT",
    "layout": {"images": ["**/*.nii.gz"], "subject": "(P\\d+)"},
}


def write_manifest(folder: Path, **changes: Any) -> Path:
    fields = copy.deepcopy(BASE) | changes
    path = folder / "manifest.json"
    path.write_text(json.dumps(fields))
    return path


def test_every_packaged_manifest_keeps_the_schema() -> None:
    assert "lidc_idri" in packaged_manifests()
    for name in packaged_manifests():
        assert load_manifest(name).name == name
        assert load_manifest(f"data_manifests/{name}.json").name == name


def test_lidc_layouts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The layouts of TCIA, of the Imaging Data Commons and of NIfTI conversions; radiographs are passed over."""
    tcia = tmp_path / "LIDC-IDRI" / "LIDC-IDRI-0001" / "01-01-2000-30178"
    write_dicom(tcia / "3000566.000000-03192", voxels(), np.eye(4), patient="LIDC-IDRI-0001")
    write_dicom(tcia / "3000923.000000-62357", voxels((6, 7, 1)), np.eye(4), patient="LIDC-IDRI-0001", modality="DX")
    idc = tmp_path / "lidc_idri" / "LIDC-IDRI-0002" / "1.3.6"
    write_dicom(idc / "CT_1.3.6.1", voxels(), np.eye(4), uid="1.3.6.1")
    write_dicom(idc / "SEG_1.3.6.2", voxels(), np.eye(4), uid="1.3.6.2", modality="SEG")
    write_nifti(tmp_path / "LIDC-IDRI-0003_scan2.nii.gz")
    write_nifti(tmp_path / "masks" / "LIDC-IDRI-0003_scan2.nii.gz")
    with caplog.at_level(logging.WARNING):
        found = find_volumes(tmp_path, load_manifest("lidc_idri"))
    assert sorted(v.subject for v in found) == ["LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003"]
    assert "states 1010 subjects, found 3" in caplog.text
    assert "states 1018 volumes, found 3" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": 3}, r"licence: 3 is not of type 'string'"),
        ({"colour": "blue"}, r"'colour' was unexpected"),
        ({"source": {}}, r"source: 'url' is a required property"),
        ({"layout": {"images": ["*"], "subject": "(P"}}, r"layout.subject: '\(P' is not a 'regex'"),
        ({"files": [{"path": "a", "sha256": "abc"}]}, r"files.0.sha256: 'abc' does not match"),
        ({"split": {"by": "slice"}}, r"split.by: 'slice' is not one of"),
    ],
)
def test_schema_breaches(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"must keep its schema.*{message}"):
        load_manifest(write_manifest(tmp_path, **changes))


def test_all_breaches_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"licence: .*modality: "):
        load_manifest(write_manifest(tmp_path, licence=3, modality=""))


def test_other_bad_manifests(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"name": ')
    with pytest.raises(UserError, match=r"valid JSON.*broken.json"):
        load_manifest(path)
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"valid JSON"):
        load_manifest(path)
    with pytest.raises(UserError, match=r"must exist.*lidc_idr.*Did you mean lidc_idri"):
        load_manifest("lidc_idr")
    with pytest.raises(UserError, match=r"must exist.*Packaged: .*lidc_idri"):
        load_manifest(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"add up to 1"):
        load_manifest(write_manifest(tmp_path, split={"by": "patient", "train": 0.8, "validation": 0.2, "test": 0.2}))
    layout = BASE["layout"] | {"masks": {"paths": ["labels/{name}.nii.gz"]}}
    with pytest.raises(UserError, match=r"may only hold \{stem\} and \{subject\}.*labels/\{name\}"):
        load_manifest(write_manifest(tmp_path, layout=layout))


@pytest.mark.parametrize("path", ["../a.nii.gz", "/etc/a.nii.gz", "x/../../a.nii.gz", "C:/a.nii.gz", "..\\a.nii.gz"])
def test_paths_that_leave_the_folder(tmp_path: Path, path: str) -> None:
    for changes in ({"files": [{"path": path}]}, {"layout": BASE["layout"] | {"images": [path]}}):
        with pytest.raises(UserError, match=r"only name files inside dataset_dir"):
            load_manifest(write_manifest(tmp_path, **changes))


@pytest.mark.parametrize("listed", [True, False])
def test_links_that_leave_the_folder(tmp_path: Path, listed: bool) -> None:
    outside = write_nifti(tmp_path / "outside" / "P1.nii.gz")
    data = tmp_path / "data"
    write_nifti(data / "P2.nii.gz")
    (data / "P1.nii.gz").symlink_to(outside)
    changes = {"files": [{"path": "P1.nii.gz"}]} if listed else {}
    with pytest.raises(UserError, match=r"only name files inside dataset_dir.*P1.nii.gz, a link to"):
        find_volumes(data, load_manifest(write_manifest(tmp_path, **changes)))


def test_layout_with_exclusion_and_masks(tmp_path: Path) -> None:
    for name in ("ct/P1_a", "ct/P1_b", "ct/P2_a", "ct/old/P3", "seg/P1_a"):
        write_nifti(tmp_path / f"{name}.nii.gz")
    layout = {
        "images": ["ct/**/*.nii.gz"],
        "exclude": ["ct/old/**"],
        "subject": "(P\\d)",
        "masks": {"paths": ["seg/{stem}.nii.gz"]},
    }
    found = find_volumes(tmp_path, load_manifest(write_manifest(tmp_path, layout=layout)))
    assert [(v.path.name, v.subject, v.mask is not None) for v in found] == [
        ("P1_a.nii.gz", "P1", True),
        ("P1_b.nii.gz", "P1", False),
        ("P2_a.nii.gz", "P2", False),
    ]
    data = build_datalist(tmp_path, write_manifest(tmp_path, layout=layout))
    items = data.train + data.validation
    assert [i["mask"] for i in items if "mask" in i] == [str(tmp_path / "seg" / "P1_a.nii.gz")]


def test_split_by_volume_where_no_patient_ids_are_published(tmp_path: Path) -> None:
    for name in ("P1_a", "P1_b"):
        write_nifti(tmp_path / f"{name}.nii.gz")
    manifest = write_manifest(tmp_path, split={"by": "volume"})
    assert {v.subject for v in find_volumes(tmp_path, load_manifest(manifest))} == {"P1_a.nii.gz", "P1_b.nii.gz"}


def test_nothing_matches(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    other = load_manifest(write_manifest(tmp_path, layout={"images": ["x/*"], "subject": "P"}))
    with pytest.raises(
        UserError, match=r"manifest small, the first x/\*\. .*1 images, the first a.nii.gz; none matching"
    ):
        find_volumes(tmp_path, other)
    with pytest.raises(UserError, match=r"layout.subject must find a subject id.*a.nii.gz"):
        find_volumes(tmp_path, load_manifest(write_manifest(tmp_path)))


def test_listed_files(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    folder = write_dicom(tmp_path / "d", voxels(), np.eye(4), uid="1.2.3.1")
    write_dicom(folder, voxels(), np.eye(4), uid="1.2.3.2")
    entries = [
        {"path": "a.nii.gz", "subject": "s1", "split": "train"},
        {"path": "d", "subject": "s2", "series_uid": "1.2.3.2", "split": "validation"},
    ]
    data = build_datalist(tmp_path, write_manifest(tmp_path, files=entries))
    assert data.train == [{"image": str(tmp_path / "a.nii.gz"), "subject": "s1"}]
    assert data.validation == [{"image": str(folder), "subject": "s2", "series_uid": "1.2.3.2"}]
    gone = [{"path": "gone.nii.gz", "subject": "s"}]
    with pytest.raises(UserError, match=r"that the manifest names must exist.*gone.nii.gz"):
        find_volumes(tmp_path, load_manifest(write_manifest(tmp_path, files=entries + gone)))
    entries[1]["sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"sha256 in a manifest belongs to a file"):
        find_volumes(tmp_path, load_manifest(write_manifest(tmp_path, files=entries)))


def test_listed_splits_must_not_leak(tmp_path: Path) -> None:
    for name in "abc":
        write_nifti(tmp_path / f"{name}.nii.gz")

    def build(*splits: str | None) -> None:
        subjects = ("s1", "s1", "s2")
        files = [
            {"path": f"{name}.nii.gz", "subject": subject} | ({"split": split} if split else {})
            for name, subject, split in zip("abc", subjects, splits, strict=True)
        ]
        build_datalist(tmp_path, write_manifest(tmp_path, files=files))

    build("train", "train", "validation")
    build(None, None, None)
    with pytest.raises(UserError, match=r"all volumes of a subject must be in one split.*s1 in train and validation"):
        build("train", "validation", "validation")
    with pytest.raises(UserError, match=r"either all files of a manifest or none"):
        build("train", "train", None)
    with pytest.raises(UserError, match=r"a split needs volumes for validation"):
        build("train", "train", "test")
