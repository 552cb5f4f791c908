"""Classes of images: by list, folder or manifest; their order and names, and what verification says of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import voxels, write_dicom, write_nifti
from image_files import pixels, write_dicom_image, write_picture
from list_files import EXPECTED, NAMES, broken_csv, items, labels, rows, write_csv, write_twelve
from test_data_manifest import write_manifest

from medical_diffusion.data import build_datalist, find_volumes, verify_dataset
from medical_diffusion.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_twelve(tmp_path)


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
    text = table.read_text(encoding="utf-8")
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
    text = table.read_text(encoding="utf-8")
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
    table.write_text(table.read_text(encoding="utf-8").replace("images/03.png,well", "images/03.png,sick"))
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
    (fault,) = faults(planar=True, channels=3)
    assert fault.startswith("12 files (") and fault.count(".png") == 3
    assert "images must be RGB here (3 channels); received a grey image. Pass --channels 1" in fault
    assert "--convert_channels true" in fault
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
    report = verify_dataset(root, datalist=broken_csv(root, "missing file"), planar=True, classes=["well", "sik"])
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
