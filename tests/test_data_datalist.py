"""Image lists: CSV and JSON give the same items, splits and subjects; bad rows are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from data_files import write_nifti
from image_files import write_picture
from list_files import EXPECTED, NAMES, broken_csv, items, labels, rows, sick_or_well, write_csv, write_twelve

from medical_diffusion.data import build_datalist, verify_dataset
from medical_diffusion.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_twelve(tmp_path)


@pytest.mark.parametrize(
    "header", ["image,label,subject", "File,Diagnosis,Patient ID", "image_path,CLASS,id", "filename,target,subject-id"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_columns_are_found_by_name(root: Path, header: str, delimiter: str) -> None:
    table = write_csv(root, [row.replace(",", delimiter) for row in rows(header)])
    data = build_datalist(root, datalist=table, planar=True)
    assert data.classes == ("sick", "well")
    assert labels(data) == EXPECTED
    assert {item["subject"] for item in items(data)} == {f"p{n}" for n in range(6)}
    assert sum(data.label_counts().values()) == len(data.train)
    assert data.label_counts()["well"] == sum(item["class_label"] == 1 for item in data.train)
    assert all(isinstance(item["class_label"], int) for item in items(data))
    assert "training" in str(data) and "well" in str(data)


def test_csv_with_byte_order_mark_blank_lines_and_backslashes(root: Path) -> None:
    text = "﻿" + "\n\n".join(row.replace("images/", "images\\") for row in rows())
    (root / "list.csv").write_text(text, encoding="utf-8")
    assert labels(build_datalist(root, datalist="list.csv", planar=True)) == EXPECTED


def test_paths_may_be_relative_to_the_list_or_absolute(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    beside = write_csv(root / "images", [row.replace("images/", "") for row in rows()])
    assert labels(build_datalist(root, datalist=beside, planar=True)) == EXPECTED
    elsewhere = tmp_path_factory.mktemp("lists")
    absolute = write_csv(elsewhere, [row.replace("images/", f"{root}/images/") for row in rows()])
    other = build_datalist(root, datalist=absolute, planar=True)
    assert labels(other) == EXPECTED
    assert other.fingerprint == build_datalist(root, datalist=beside, planar=True).fingerprint


def test_columns_can_be_named(root: Path) -> None:
    grades = ["Grade", *(str(int(label == "well")) for label in EXPECTED.values())]
    named = write_csv(root, [f"{row},{g}" for row, g in zip(rows("where,label,who"), grades, strict=True)])
    data = build_datalist(
        root, datalist=named, planar=True, image_column="where", label_column="grade", subject_column="who"
    )
    assert data.classes == ("0", "1")
    assert labels(data) == {name: str(int(label == "well")) for name, label in EXPECTED.items()}
    with pytest.raises(UserError, match=r"column for the label: grad\. .*columns where, label, who, Grade.*mean Grade"):
        build_datalist(root, datalist=named, planar=True, image_column="where", label_column="grad")
    with pytest.raises(UserError, match=r"column for the image: image or file or path.*image_column"):
        build_datalist(root, datalist=named, planar=True)
    with pytest.raises(UserError, match=r"columns are those of a datalist.*who without one"):
        build_datalist(root, planar=True, subject_column="who")


def test_stated_splits_are_kept_and_validation_is_held_out_where_none_is_stated(root: Path) -> None:
    parts = ["train"] * 6 + ["VAL"] * 2 + ["valid"] * 2 + ["Test"] * 2
    table = write_csv(root, ["file,split", *(f"images/{n}.png,{p}" for n, p in zip(NAMES, parts, strict=True))])
    data = build_datalist(root, datalist=table, planar=True)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 4, 2]
    assert data.classes == () and data.label_counts() == {}
    assert "class_label" not in data.train[0]
    table.write_text(table.read_text(encoding="utf-8").replace("VAL", "train").replace("valid", "train"))
    data = build_datalist(root, datalist=table, planar=True, validation_fraction=0.2)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 2, 2]


def test_one_patient_in_two_splits(root: Path) -> None:
    parts = ["train", "val", *["train"] * 10]
    split = [f"{row},{part}" for row, part in zip(rows(), ["split", *parts], strict=True)]
    table = write_csv(root, split)
    message = r"subject must be in one split.*p0 in train and validation \(list.csv line 3\)"
    with pytest.raises(UserError, match=message):
        build_datalist(root, datalist=table, planar=True)
    with pytest.raises(UserError, match=message):
        verify_dataset(root, datalist=table, planar=True, progress=False).raise_if_faulty()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing file", r"file that list.csv names must exist.*33.png: line 5: no such file below"),
        ("duplicate", r"must name each image once.*01.png: line 14 names the file of line 3"),
        ("empty", r"at least one image.*list.csv, which is empty"),
        ("header only", r"at least one image.*list.csv"),
        ("encoding", r"must be text in UTF-8"),
        ("latin", r"must be text in UTF-8.*list.csv.*Save it as CSV UTF-8"),
        ("ragged", r"must have the 3 fields of its header.*line 14 with 2"),
        ("nameless", r"must name an image.*line 14"),
        ("split", r"must be train, validation or test.*'p0' in line 2.*and 2 more"),
        ("part split", r"either all rows.*must state their split.*none in line 3"),
        ("no image", r"that a datalist names must be an image.*list.csv: line 5: .csv"),
        ("two columns", r"must have different names.*two label"),
    ],
)
def test_bad_lists(root: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_datalist(root, datalist=broken_csv(root, kind), planar=True)


def test_missing_list_and_two_sources(root: Path) -> None:
    with pytest.raises(UserError, match=r"existing CSV or JSON file.*gone.csv"):
        build_datalist(root, datalist="gone.csv", planar=True)
    with pytest.raises(UserError, match=r"one of manifest, datalist and class_folders.*datalist and class_folders"):
        build_datalist(root, datalist=write_csv(root, rows()), class_folders=True)


def test_subjects_without_a_column(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"set/patient{n:05d}/study{s}/view.png" for n in range(3) for s in (1, 2)] + ["x/sub-07_a.png", "y/a.png"]
    for name in names:
        write_picture(root / name)
    table = write_csv(root, ["Path", *names])
    with caplog.at_level(logging.INFO):
        data = build_datalist(root, datalist=table, planar=True)
    subjects = {item["subject"] for item in items(data)}
    assert subjects == {"patient00000", "patient00001", "patient00002", "sub-07", "y/a"}
    assert "names no subjects: taking 5 of 8 images" in caplog.text


def test_monai_datalist(root: Path) -> None:
    def entry(name: str) -> dict[str, Any]:
        return {"image": f"images/{name}.png", "label": int(sick_or_well(name) == "well"), "patient": f"p{name}"}

    content = {"training": [entry(n) for n in NAMES[:8]], "validation": [entry(n) for n in NAMES[8:]], "name": "x"}
    (root / "list.json").write_text(json.dumps(content))
    data = build_datalist(root, datalist="list.json", planar=True)
    assert data.classes == ("0", "1")
    assert [len(data.train), len(data.validation)] == [8, 4]
    assert data.train[0]["subject"] == "p00"
    named = build_datalist(root, datalist="list.json", planar=True, classes=["sick", "well"])
    assert labels(named) == EXPECTED
    assert named.classes_fingerprint != data.classes_fingerprint
    for name in ("class", "class_label"):
        renamed = {part: [{("label" if k == name else k): v for k, v in e.items()} for e in content[part]]
                   for part in ("training", "validation")}  # fmt: skip
        (root / "other.json").write_text(json.dumps(renamed))
        assert labels(build_datalist(root, datalist="other.json", planar=True, classes=["sick", "well"])) == EXPECTED


def test_msd_dataset_json_names_segmentations(tmp_path: Path) -> None:
    for number in range(4):
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            write_nifti(tmp_path / folder / f"h_{number}.nii.gz")
    content: dict[str, Any] = {
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": f"./imagesTr/h_{n}.nii.gz", "label": f"./labelsTr/h_{n}.nii.gz"} for n in range(4)],
        "test": [f"./imagesTs/h_{n}.nii.gz" for n in range(4)],
    }
    table = tmp_path / "dataset.json"
    table.write_text(json.dumps(content))
    data = build_datalist(tmp_path, datalist=table)
    assert data.classes == ()
    assert [len(data.train), len(data.validation), len(data.test)] == [3, 1, 4]
    assert data.train[0]["label"] == data.train[0]["image"].replace("images", "labels")
    assert "label" not in data.test[0]
    del content["test"]
    content["training"][0] |= {"class": "left"}
    for entry in content["training"][1:]:
        entry |= {"class": "right"}
    table.write_text(json.dumps(content))
    both = build_datalist(tmp_path, datalist=table)
    assert both.classes == ("left", "right")
    assert all("label" in item and "class_label" in item for item in items(both))
    assert not verify_dataset(tmp_path, datalist=table, progress=False).faults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": ', r"must be valid JSON"),
        ('{"images": []}', r"list of images under training, validation or test.*images"),
        ("[]", r"list of images under training.*list"),
        ('{"training": {}}', r"training in .* must be a list.*dict"),
        ('{"training": [3]}', r"must be a path or an entry with one.*training\[0\]: 3"),
        ('{"training": [{"image": ["a.png", "b.png"]}]}', r"one name or number each.*training\[0\]: \['a.png'"),
        ('{"training": [{"label": 1}]}', r"must name an image.*training\[0\]"),
        ('{"training": []}', r"must name at least one image"),
        (
            '{"training": [{"image": "images/00.png"}, {"image": "images/00.png"}]}',
            r"training\[1\] names the file",
        ),
    ],
)
def test_bad_json(root: Path, text: str, message: str) -> None:
    (root / "list.json").write_text(text)
    with pytest.raises(UserError, match=message):
        build_datalist(root, datalist="list.json", planar=True)
