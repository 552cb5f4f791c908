"""Labels by a manifest's tables: joined, mapped and filtered; rows without images and images without rows are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import voxels, write_nifti
from image_files import pixels, write_picture
from list_files import labels
from test_data_manifest import BASE, write_manifest

from medical_diffusion.data import build_datalist, find_volumes, load_manifest, verify_dataset
from medical_diffusion.errors import UserError

CLASSES: dict[str, Any] = {
    "names": ["well", "sick"],
    "tables": [{"file": "labels.csv"}],
    "join": {"column": "Image", "expression": "(P\\d+)"},
    "label": "Grade",
    "values": {"0": "well", "1": "sick", "-1": "sick", "": "well"},
}
LAYOUT = {"images": ["**/P*.png"], "subject": "(P\\d+)"}
ROWS = ["Image,View,Grade", "set/P0.png,front,0", "set/P1.png,front,1.0", "P2,front,-1.0", "P3,front,"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / "data" / "set" / f"P{number}.png", pixels(seed=number))
    (tmp_path / "data" / "labels.csv").write_text("\n".join(ROWS) + "\n")
    return tmp_path / "data"


def manifest_of(root: Path, **changes: Any) -> Path:
    return write_manifest(root.parent, layout=LAYOUT, classes=CLASSES | changes)


def rewrite(root: Path, *rows: str) -> None:
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def test_values_are_mapped_and_the_manifest_orders_the_classes(root: Path) -> None:
    data = build_datalist(root, manifest_of(root), planar=True)
    assert data.classes == ("well", "sick")
    assert labels(data) == {"P0": "well", "P1": "sick", "P2": "sick", "P3": "well"}
    other = build_datalist(root, manifest_of(root), planar=True, classes=["sick", "well"])
    assert labels(other) == labels(data)
    assert build_datalist(root, manifest_of(root), planar=True, labels=False).classes == ()


def test_the_table_may_lie_on_the_way_to_the_images_and_have_no_header(root: Path) -> None:
    (root / "labels.csv").rename(root / "set" / "labels.csv")
    assert len(labels(build_datalist(root, manifest_of(root), planar=True))) == 4
    (root / "set" / "labels.csv").write_text("\n".join(ROWS[1:]))
    headless = manifest_of(root, tables=[{"file": "labels.csv", "header": ["Image", "View", "Grade"]}])
    assert labels(build_datalist(root, headless, planar=True))["P1"] == "sick"
    (root / "set" / "labels.csv").unlink()
    with pytest.raises(UserError, match=r"needs its table of labels, labels.csv.*none in .*/data, .*/data/set"):
        build_datalist(root, headless, planar=True)


def test_filtered_rows_take_their_images_with_them(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(root, *ROWS[:4], "P3,side,7")
    data = build_datalist(root, manifest_of(root, filter={"View": ["front"]}), planar=True)
    assert set(labels(data)) == {"P0", "P1", "P2"}
    assert "no image" not in caplog.text


def test_images_without_rows_and_rows_without_images(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(root, *ROWS, "P8,front,1", "P9,front,1")
    build_datalist(root, manifest_of(root), planar=True)
    assert "2 of 6 rows of labels.csv have no image, the first P8 (labels.csv line 6)" in caplog.text
    rewrite(root, *ROWS[:3])
    missing = r"have a row in labels.csv.*2 of 4 images without, the first set/P2.png"
    with pytest.raises(UserError, match=missing):
        build_datalist(root, manifest_of(root), planar=True)
    with pytest.raises(UserError, match=missing):
        verify_dataset(root, manifest_of(root), planar=True, progress=False).raise_if_faulty()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("P3,front,5", r"column Grade must be one of '0', '1', '-1', ''.*'5' in line 5"),
        ("P1,front,0", r"must have one label.*P1 of labels.csv line 3 in labels.csv line 5"),
        ("Q3,front,1", r"Image must hold a key such as \(P\\d\+\).*Q3 in labels.csv line 5"),
        ("P3,front", r"must have the 3 fields of its header.*line 5 with 2"),
    ],
)
def test_bad_rows_are_named(root: Path, row: str, message: str) -> None:
    rewrite(root, *ROWS[:4], row)
    with pytest.raises(UserError, match=message):
        build_datalist(root, manifest_of(root), planar=True)


def test_missing_columns(root: Path) -> None:
    for changes, name in ((("Grade", "Grades"), "Grade"), (("Image", "File"), "Image")):
        rewrite(root, ROWS[0].replace(*changes), *ROWS[1:])
        with pytest.raises(UserError, match=rf"must have the column {name}\. .*labels.csv with columns"):
            build_datalist(root, manifest_of(root), planar=True)


def test_rules_that_contradict_themselves(root: Path) -> None:
    with pytest.raises(UserError, match=r"stand for classes.names. Received: sik. Did you mean sick"):
        load_manifest(manifest_of(root, values={"1": "sik"}))
    with pytest.raises(UserError, match=r"must have a group.*P\\d"):
        load_manifest(manifest_of(root, join={"column": "Image", "expression": "P\\d"}))
    both = CLASSES | {"folders": {"a": "well"}}
    with pytest.raises(UserError, match=r"must keep its schema.*classes: .*is valid under each of"):
        load_manifest(write_manifest(root.parent, layout=LAYOUT, classes=both))


def test_folders_of_classes(root: Path) -> None:
    classes = {"names": ["well", "sick"], "folders": {"A": "well", "B": "sick"}}
    manifest = write_manifest(root.parent, layout=LAYOUT, classes=classes)
    with pytest.raises(UserError, match=r"must lie in a folder A or B.*4 files .*: set\. Expected \*\*/P"):
        build_datalist(root, manifest, planar=True)
    for number in range(4):
        target = root / "AB"[number % 2] / f"P{number}.png"
        target.parent.mkdir(exist_ok=True)
        (root / "set" / f"P{number}.png").rename(target)
    assert labels(build_datalist(root, manifest, planar=True)) == {
        "P0": "well",
        "P1": "sick",
        "P2": "well",
        "P3": "sick",
    }


def test_masks_that_are_required(tmp_path: Path) -> None:
    for number in range(3):
        write_nifti(tmp_path / "ct" / f"P{number}.nii.gz", voxels(seed=number))
    for number in (0, 1, 7):
        write_nifti(tmp_path / "seg" / f"P{number}.nii.gz", np.ones((6, 7, 5), np.uint8))
    layout = BASE["layout"] | {
        "images": ["ct/*.nii.gz"],
        "masks": {"paths": ["seg/{stem}.nii.gz", "{subject}.nrrd"], "required": True},
    }
    manifest = write_manifest(tmp_path, layout=layout)
    without_mask = r"ct/P2.nii.gz: every image .* must have a mask; received none at seg/P2.nii.gz or P2.nrrd"
    without_image = r"seg/P7.nii.gz: every mask .* must have an image"
    with pytest.raises(UserError, match=rf"(?s){without_mask}.*{without_image}.*In all 2 faults"):
        find_volumes(tmp_path, load_manifest(manifest))
