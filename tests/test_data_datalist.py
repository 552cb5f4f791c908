"""Labelled image lists: CSV, JSON, class folders and manifests give the same items; bad rows are named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import voxels, write_dicom, write_nifti
from image_files import pixels, write_dicom_image, write_picture
from test_data_manifest import write_manifest

from medical_diffusion.data import build_datalist, find_volumes, verify_dataset
from medical_diffusion.errors import UserError

NAMES = [f"{number:02d}" for number in range(12)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve pictures in ``images``."""
    for seed, name in enumerate(NAMES):
        write_picture(tmp_path / "images" / f"{name}.png", pixels(seed=seed))
    return tmp_path


def write_csv(root: Path, rows: list[str], name: str = "list.csv") -> Path:
    (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root / name


def sick_or_well(name: str) -> str:
    return "sick" if int(name) % 3 else "well"


def rows(header: str = "image,label,subject") -> list[str]:
    return [header, *(f"images/{name}.png,{sick_or_well(name)},p{int(name) // 2}" for name in NAMES)]


def items(data: Any) -> list[dict[str, Any]]:
    return sorted(data.train + data.validation + data.test, key=lambda item: item["image"])


def labels(data: Any) -> dict[str, str]:
    return {Path(item["image"]).name.split(".")[0]: data.classes[item["class_label"]] for item in items(data)}


EXPECTED = {name: sick_or_well(name) for name in NAMES}


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
    table.write_text(table.read_text().replace("VAL", "train").replace("valid", "train"))
    data = build_datalist(root, datalist=table, planar=True, validation_fraction=0.2)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 2, 2]


def test_numbers_sort_as_numbers_and_are_named_by_their_text(root: Path) -> None:
    grades = ["10", "2", "-1", "0"] * 3
    table = write_csv(root, ["file,label", *(f"images/{n}.png,{g}" for n, g in zip(NAMES, grades, strict=True))])
    assert build_datalist(root, datalist=table, planar=True).classes == ("-1", "0", "2", "10")


def test_given_classes_set_order_and_may_be_numbered(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = write_csv(root, rows())
    data = build_datalist(root, datalist=table, planar=True, classes=["well", "sick", "other"])
    assert data.classes == ("well", "sick", "other")
    assert labels(data) == EXPECTED
    assert data.label_counts()["other"] == 0
    assert "No image is labelled other" in caplog.text
    text = table.read_text()
    for zero, one in (("0", "1"), ("0.0", "1.0")):
        table.write_text(text.replace("well", zero).replace("sick", one))
        assert labels(build_datalist(root, datalist=table, planar=True, classes=["well", "sick"])) == EXPECTED
    table.write_text(text.replace("well", "0").replace("sick", "2"))
    with pytest.raises(UserError, match=r"of the classes well, sick.*'0' \(.*'2' \("):
        build_datalist(root, datalist=table, planar=True, classes=["well", "sick"])
    with pytest.raises(UserError, match=r"classes must be different names.*well"):
        build_datalist(root, datalist=table, planar=True, classes=["well", "well"])


def test_labels_missing_unknown_or_of_one_class(root: Path) -> None:
    table = write_csv(root, rows())
    text = table.read_text()
    with pytest.raises(UserError, match=r"of the classes well, sik.*'sick' \(list.csv line 3, .*mean sik"):
        build_datalist(root, datalist=table, planar=True, classes=["well", "sik"])
    table.write_text(text.replace("images/03.png,well", "images/03.png,").replace("05.png,sick", "05.png, "))
    missing = r"every image must have a label.*2 of 12 without: list.csv line 5, list.csv line 7"
    with pytest.raises(UserError, match=missing):
        build_datalist(root, datalist=table, planar=True)
    with pytest.raises(UserError, match=missing):
        verify_dataset(root, datalist=table, planar=True, progress=False).raise_if_faulty()
    assert build_datalist(root, datalist=table, planar=True, labels=False).classes == ()
    table.write_text(text.replace("well", "sick"))
    assert build_datalist(root, datalist=table, planar=True).classes == ("sick",)
    for asked in ({"labels": True}, {"label_column": "label"}, {"classes": ["sick", "well"]}):
        with pytest.raises(UserError, match=r"at least two classes.*sick alone"):
            build_datalist(root, datalist=table, planar=True, **asked)
    with pytest.raises(UserError, match=r"every image must have a label.*12 of 12 without: 00.png"):
        build_datalist(root, planar=True, labels=True)


def test_one_patient_in_two_splits(root: Path) -> None:
    parts = ["train", "val", *["train"] * 10]
    split = [f"{row},{part}" for row, part in zip(rows(), ["split", *parts], strict=True)]
    table = write_csv(root, split)
    message = r"subject must be in one split.*p0 in train and validation \(list.csv line 3\)"
    with pytest.raises(UserError, match=message):
        build_datalist(root, datalist=table, planar=True)
    with pytest.raises(UserError, match=message):
        verify_dataset(root, datalist=table, planar=True, progress=False).raise_if_faulty()


def _broken(root: Path, kind: str) -> Path:
    text = "\n".join(rows())
    table = root / "list.csv"
    content = {
        "missing file": text.replace("images/03.png", "images/33.png").encode(),
        "duplicate": f"{text}\n./images/01.png,sick,p0".encode(),
        "empty": b"  \n",
        "header only": b"image,label\n",
        "encoding": text.replace("sick", "kränk").encode("utf-16"),
        "latin": text.replace("sick", "kränk").encode("latin-1"),
        "ragged": f"{text}\nimages/x.png,a".encode(),
        "nameless": f"{text}\n,sick,p1".encode(),
        "split": text.replace("subject", "fold").encode(),
        "part split": b"image,split\nimages/00.png,train\nimages/01.png,\n",
        "no image": text.replace("images/03.png", "list.csv").encode(),
        "two columns": b"image,label,Label\nimages/00.png,a,b\n",
    }[kind]
    table.write_bytes(content)
    return table


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
        build_datalist(root, datalist=_broken(root, kind), planar=True)


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


def test_a_folder_per_class(tmp_path: Path) -> None:
    for number in range(4):
        for name in ("well", "sick"):
            write_picture(tmp_path / "images" / name / f"{name}{number}.png")
    write_picture(tmp_path / "images" / "sick" / "p9" / "a.png")
    write_picture(tmp_path / "images" / "sick" / "p9" / "b.jpg")
    write_picture(tmp_path / "images" / "well" / "sub-03_view.png")
    write_dicom_image(tmp_path / "images" / "well" / "x.dcm", pixels(), PatientID="D1")
    data = build_datalist(tmp_path, class_folders=True, planar=True)
    assert data.classes == ("sick", "well")
    assert all(Path(i["image"]).relative_to(tmp_path).parts[1] == data.classes[i["class_label"]] for i in items(data))
    found = {Path(item["image"]).name: item["subject"] for item in items(data)}
    assert found["a.png"] == found["b.jpg"] == "p9"
    assert (found["sub-03_view.png"], found["x.dcm"], found["sick1.png"]) == ("sub-03", "D1", "sick1")


def test_class_folders_within_split_folders(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("well", "sick"):
            for number in range(count):  # one numbering in each split
                write_picture(tmp_path / part / name / f"{number}.png")
    data = build_datalist(tmp_path, class_folders=True, planar=True)
    assert [len(data.train), len(data.validation), len(data.test)] == [8, 4, 6]
    assert data.label_counts() == {"sick": 4, "well": 4}
    shutil.rmtree(tmp_path / "val")
    assert len(build_datalist(tmp_path, class_folders=True, planar=True).test) == 6
    for part in ("train", "test"):
        write_picture(tmp_path / part / "well" / "p1" / f"{part}.png")
    with pytest.raises(UserError, match=r"all volumes of a subject must be in one split.*p1 in "):
        build_datalist(tmp_path, class_folders=True, planar=True)


def test_class_folders_that_are_none(root: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)lie in the folder of its class; received images/00.png"):
        build_datalist(root, class_folders=True, planar=True)
    (root / "images").rename(root / "well")
    with pytest.raises(UserError, match=r"at least two classes.*well alone"):
        build_datalist(root, class_folders=True, planar=True)


def test_manifest_with_classes_in_three_dimensions(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        write_nifti(tmp_path / f"P{number}.nii.gz", voxels(seed=number))
        files.append({"path": f"P{number}.nii.gz", "class": "left" if number % 2 else "right"})
    data = build_datalist(tmp_path, write_manifest(tmp_path, files=files))
    assert data.classes == ("left", "right")
    assert labels(data) == {f"P{n}": "left" if n % 2 else "right" for n in range(4)}
    plain = [{key: value for key, value in entry.items() if key != "class"} for entry in files]
    assert (
        build_datalist(tmp_path, write_manifest(tmp_path, files=plain)).classes_fingerprint != data.classes_fingerprint
    )
    files[0]["class"] = "left"
    assert (
        build_datalist(tmp_path, write_manifest(tmp_path, files=files)).classes_fingerprint != data.classes_fingerprint
    )
    del files[0]["class"]
    with pytest.raises(UserError, match=r"every image must have a label.*1 of 4 without: P0.nii.gz"):
        build_datalist(tmp_path, write_manifest(tmp_path, files=files))


def test_fingerprints_tell_images_from_classes_and_not_the_place(root: Path, tmp_path: Path) -> None:
    table = write_csv(root, rows())
    first = build_datalist(root, datalist=table, planar=True)
    shutil.copytree(root, tmp_path / "copy")
    copied = build_datalist(tmp_path / "copy", datalist="list.csv", planar=True)
    assert (copied.fingerprint, copied.classes_fingerprint) == (first.fingerprint, first.classes_fingerprint)
    order = build_datalist(root, datalist=table, planar=True, classes=["well", "sick"])
    unlabelled = build_datalist(root, datalist=table, planar=True, labels=False)
    table.write_text(table.read_text().replace("images/03.png,well", "images/03.png,sick"))
    changed = build_datalist(root, datalist=table, planar=True)
    assert len({data.classes_fingerprint for data in (first, order, unlabelled, changed)}) == 4
    assert len({data.fingerprint for data in (first, order, unlabelled, changed)}) == 1


def test_images_count_only_where_they_are_asked_for(root: Path) -> None:
    with pytest.raises(UserError, match=r"readable images.*12 x .png.*flat images belong to a bundle of depth 1"):
        find_volumes(root)
    write_nifti(root / "volume.nii.gz")
    assert [v.kind for v in find_volumes(root)] == ["nifti"]
    assert sorted({v.kind for v in find_volumes(root, planar=True)}) == ["nifti", "png"]
    table = write_csv(root, rows())
    with pytest.raises(UserError, match=r"a flat image where volumes are asked for.*depth 1"):
        build_datalist(root, datalist=table)


def test_every_format_and_each_dicom_file(tmp_path: Path) -> None:
    write_dicom(tmp_path / "ct", voxels((6, 7, 3)), np.eye(4), patient="P7")
    write_dicom_image(tmp_path / "dx" / "a.dcm", pixels())
    write_dicom_image(tmp_path / "dx" / "sr.dcm", pixels(), Modality="SEG", SeriesInstanceUID="1.9")
    for suffix in ("jpg", "jpeg", "tif", "tiff", "PNG"):
        write_picture(tmp_path / f"{suffix}.{suffix}")
    np.save(tmp_path / "n.npy", pixels())
    np.savez(tmp_path / "z.npz", pixels())
    write_picture(tmp_path / "masks" / "n.png")
    found = find_volumes(tmp_path, planar=True)
    kinds = [v.kind for v in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {"dicom": 4, "png": 1, "numpy": 2, "jpeg": 2, "tiff": 2}
    assert [v.subject for v in found if v.kind == "dicom"] == ["P7", "P7", "P7", "dx"]
    assert all(v.path.is_file() for v in found)
    assert not verify_dataset(tmp_path, planar=True, progress=False).faults


@pytest.mark.parametrize("headers_only", [True, False])
def test_verification_of_channels_and_depth(root: Path, headers_only: bool) -> None:
    def faults(**options: Any) -> list[str]:
        return list(map(str, verify_dataset(root, headers_only=headers_only, progress=False, **options).faults))

    assert faults(planar=True, channels=1) == []
    assert len(faults(planar=True, channels=3)) == 12
    assert faults(planar=True, channels=3, convert_channels=True) == []
    write_picture(root / "same.png", np.repeat(pixels()[..., None], 3, -1))
    assert faults(planar=True, channels=1) == []
    write_picture(root / "rgb.png", pixels((5, 7, 3)))
    (fault,) = faults(planar=True, channels=1)
    assert "rgb.png: images must be grey here (1 channel)" in fault
    assert faults(planar=True, channels=1, convert_channels=True) == []
    (root / "rgb.png").unlink()
    write_nifti(root / "volume.nii.gz")
    (fault,) = faults(planar=True)
    assert "volume.nii.gz: an image must be flat here; received a volume of shape (6, 7, 5)" in fault
    (root / "volume.nii.gz").unlink()
    (root / "text.png").write_text("no")
    (fault,) = faults(planar=True)
    assert "text.png: a file must be of the format that its name says" in fault


def test_verification_tells_classes(root: Path) -> None:
    table = write_csv(root, rows())
    assert "classes       sick 8, well 4" in str(verify_dataset(root, datalist=table, planar=True, progress=False))
    report = verify_dataset(root, datalist=_broken(root, "missing file"), planar=True, classes=["well", "sik"])
    assert len(report.faults) == 2
    with pytest.raises(UserError, match=r"(?s)33.png.*labels must be of the classes.*Did you mean sik\?\n"):
        report.raise_if_faulty()


def test_real_labelled_images(data_folder: Path) -> None:
    folder = data_folder / "fundus"
    if not folder.is_dir():
        pytest.skip("no fundus photographs")
    data = build_datalist(folder, datalist="manifest.csv", planar=True, label_column="dr_grade")
    assert data.classes == ("0", "1", "2", "3", "4")
    assert min(data.label_counts().values()) > 0
    assert not verify_dataset(
        folder, datalist="manifest.csv", planar=True, channels=3, headers_only=True, progress=False
    ).faults
