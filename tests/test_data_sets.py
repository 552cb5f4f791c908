"""The packaged manifests on small folders of the published layouts: items, classes, subjects, splits, counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import oblique_affine, voxels, write_dicom, write_nifti
from image_files import pixels, write_picture
from list_files import items, labels

from medical_diffusion.bundle.render import bundle_names
from medical_diffusion.data import build_datalist, find_volumes, load_manifest, verify_dataset
from medical_diffusion.data.listing.manifest import packaged_manifests
from medical_diffusion.data.listing.series import load_series
from medical_diffusion.data.phantoms import PHANTOM_KINDS
from medical_diffusion.errors import UserError


def write_rows(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def write_chexpert(root: Path) -> None:
    """Four patients with a frontal and a lateral view each; every label that the table knows."""
    folder = root / "CheXpert-v1.0-small"
    rows = ["Path,Sex,Age,Frontal/Lateral,AP/PA,Enlarged Cardiomediastinum,Cardiomegaly"]
    for number, label in enumerate(("1.0", "0.0", "-1.0", "")):
        for view in ("frontal", "lateral"):
            name = f"train/patient{number:05d}/study1/view1_{view}.jpg"
            write_picture(folder / name, pixels(seed=number))
            rows.append(f"CheXpert-v1.0-small/{name},Female,68,{view.title()},AP,,{label}")
    write_picture(folder / "valid/patient64541/study1/view1_frontal.jpg")
    write_rows(folder / "train.csv", *rows)


def write_airogs(root: Path) -> None:
    rows = ["challenge_id,class"]
    for number in range(6):
        write_picture(root / str(number % 2) / f"TRAIN{number:06d}.jpg", pixels((5, 7, 3), seed=number))
        rows.append(f"TRAIN{number:06d},{'RG' if number == 4 else 'NRG'}")
    write_rows(root / "train_labels.csv", *rows)


def write_crcdx(root: Path, folders: tuple[str, str] = ("MSIH", "nonMSIH"), suffix: str = "png") -> None:
    for patient in range(4):
        folder = folders[patient % 2]
        for tile in ("AAA", "BBB"):
            name = f"blk-{tile}-TCGA-AA-{3492 + patient}-01Z-00-DX1.{suffix}"
            write_picture(root / "CRC_DX_TRAIN" / folder / name, pixels((6, 6, 3), seed=patient))
            write_picture(root / "CRC_DX_TEST" / folder / name.replace("AA", "ZZ"), pixels((6, 6, 3)))


def write_mrnet(root: Path) -> None:
    folder = root / "MRNet-v1.0"
    exams = {"train": ("0000", "0001", "0002"), "valid": ("1130", "1131")}
    for part, names in exams.items():
        for name in names:
            for plane in ("axial", "coronal", "sagittal"):
                path = folder / part / plane / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, pixels((7, 16, 16), seed=int(name)))
        write_rows(folder / f"{part}-acl.csv", *(f"{name},{int(name) % 2}" for name in names))
        write_rows(folder / f"{part}-meniscus.csv", *(f"{name},1" for name in names))


def write_adni(root: Path) -> None:
    for number, visits in ((295, 2), (413, 1)):
        for visit in range(visits):
            subject, image = f"002_S_{number:04d}", f"I{13722 + visit}"
            folder = root / "ADNI" / subject / "MP-RAGE" / f"2006-04-{18 + visit}_08_20_30.0" / image
            write_nifti(folder / f"ADNI_{subject}_MR_MP-RAGE_br_{image}.nii", voxels(seed=number + visit))
            write_nifti(folder / f"ADNI_{subject}_MR_Brain_Mask_{image}.nii")
    dicom = root / "ADNI" / "941_S_1203" / "MP-RAGE" / "2007-02-06_10_11_12.0" / "I40966"
    write_dicom(dicom, voxels(), oblique_affine(), patient="941_S_1203", modality="MR")


def write_duke(root: Path) -> None:
    for number in (1, 2, 3):
        patient = f"Breast_MRI_{number:03d}"
        folder = root / patient / f"MR_1.3.{number}"
        write_dicom(folder, voxels(seed=number), np.eye(4), uid=f"1.3.{number}", patient=patient, modality="MR")
    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([-1.0, -1, 1, 1])
    write_nifti(root / "masks" / "Breast_MRI_002.nii.gz", np.ones((6, 7, 5), np.uint8), affine)


def write_lidc(root: Path) -> None:
    for number in (1, 2):
        patient = f"LIDC-IDRI-{number:04d}"
        write_dicom(root / patient / f"CT_1.4.{number}", voxels(seed=number), np.eye(4), f"1.4.{number}", patient)


SETS: dict[str, tuple[Callable[[Path], None], int, int, dict[str, int]]] = {
    "chexpert": (write_chexpert, 4, 4, {"no cardiomegaly": 2, "cardiomegaly": 2}),
    "airogs": (write_airogs, 6, 6, {"no glaucoma": 5, "glaucoma": 1}),
    "crcdx": (write_crcdx, 8, 4, {"stable": 4, "instable": 4}),
    "mrnet": (write_mrnet, 5, 5, {"intact": 3, "torn": 2}),
    "adni": (write_adni, 4, 3, {}),
    "duke_breast_mri": (write_duke, 3, 3, {}),
    "lidc_idri": (write_lidc, 2, 2, {}),
}


def test_every_packaged_manifest_has_a_layout_here() -> None:
    assert set(SETS) == set(packaged_manifests())


@pytest.mark.parametrize("name", SETS)
def test_published_layout(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write, count, subjects, by_class = SETS[name]
    write(tmp_path)
    manifest = load_manifest(name)
    data = build_datalist(tmp_path, name, planar=manifest.planar)
    assert len(items(data)) == count
    assert len({item["subject"] for item in items(data)}) == subjects
    assert data.classes == tuple(by_class)
    assert {c: sum(data.classes[i["class_label"]] == c for i in items(data)) for c in data.classes} == by_class
    parts = [{item["subject"] for item in part} for part in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == subjects  # no subject in two parts
    stated = manifest.counts["volumes"]
    assert f"Manifest {name} states {stated} volumes, found {count}" in caplog.text
    for class_name, found in by_class.items():
        if "classes" in manifest.counts:
            both = f"states {manifest.counts['classes'][class_name]} images of class {class_name}, found {found}"
            assert both in caplog.text
    report = verify_dataset(tmp_path, name, progress=False, planar=manifest.planar)
    report.raise_if_faulty()
    assert [record.volume.path for record in report.records] == sorted(record.volume.path for record in report.records)


@pytest.mark.parametrize("name", SETS)
def test_the_example_is_of_the_layout(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.example is not None
    assert manifest.matches(manifest.example)
    assert manifest.subject_of(manifest.example)


@pytest.mark.parametrize("name", SETS)
def test_another_folder_shows_what_is_expected_and_what_is_there(name: str, tmp_path: Path) -> None:
    manifest = load_manifest(name)
    write_picture(tmp_path / "pictures" / "holiday.png")
    write_nifti(tmp_path / "scans" / "scan.nii.gz")
    first = r"pictures/holiday\.png" if manifest.planar else r"scans/scan\.nii\.gz"
    message = rf"files of manifest {name}, the first .*{Path(str(manifest.example)).parts[0]}.*the first {first}"
    with pytest.raises(UserError, match=message):
        find_volumes(tmp_path, manifest, planar=manifest.planar)
    (tmp_path / "scans" / "scan.nii.gz").unlink()
    (tmp_path / "pictures" / "holiday.png").rename(tmp_path / "pictures" / "holiday.txt")
    with pytest.raises(UserError, match=rf"readable images.*1 x .txt.*first image of manifest {name} is"):
        find_volumes(tmp_path, manifest, planar=manifest.planar)


def test_chexpert_is_relabelled_as_the_paper_did(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    data = build_datalist(tmp_path, "chexpert", planar=True)
    by_patient = {item["subject"]: data.classes[item["class_label"]] for item in items(data)}
    assert by_patient == {
        "patient00000": "cardiomegaly",
        "patient00001": "no cardiomegaly",
        "patient00002": "cardiomegaly",  # uncertain
        "patient00003": "no cardiomegaly",  # unknown
    }
    assert all("frontal" in item["image"] for item in items(data))


def test_chexpert_of_the_large_archives(tmp_path: Path) -> None:
    """There the batches' folders are not those of the table's paths, and the table lies above."""
    write_chexpert(tmp_path / "down")
    folder = tmp_path / "down" / "CheXpert-v1.0-small"
    (folder / "train").rename(tmp_path / "CheXpert-v1.0 batch 2 (train 1)")
    (folder / "train.csv").rename(tmp_path / "train.csv")
    assert len(items(build_datalist(tmp_path, "chexpert", planar=True))) == 4


def test_crcdx_folders_of_both_releases(tmp_path: Path) -> None:
    write_crcdx(tmp_path, ("MSIMUT", "MSS"), "jpg")
    data = build_datalist(tmp_path, "crcdx", planar=True)
    assert set(labels(data).values()) == {"stable", "instable"}
    assert {item["subject"] for item in items(data)} == {f"TCGA-AA-{3492 + n}" for n in range(4)}
    assert not any("TEST" in item["image"] for item in items(data))


def test_mrnet_takes_the_sagittal_plane(tmp_path: Path) -> None:
    write_mrnet(tmp_path)
    data = build_datalist(tmp_path, "mrnet")
    assert labels(data) == {"0000": "intact", "0001": "torn", "0002": "intact", "1130": "intact", "1131": "torn"}
    assert all("/sagittal/" in item["image"] for item in items(data))
    assert {item["subject"] for item in items(data)} == set(labels(data))


def test_duke_masks_go_with_their_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_duke(tmp_path)
    data = build_datalist(tmp_path, "duke_breast_mri")
    masks = {item["subject"]: item.get("mask") for item in items(data)}
    assert masks == {
        "Breast_MRI_001": None,
        "Breast_MRI_002": str(tmp_path / "masks" / "Breast_MRI_002.nii.gz"),
        "Breast_MRI_003": None,
    }
    write_nifti(tmp_path / "masks" / "Breast_MRI_009.nii.gz", np.ones((6, 7, 5), np.uint8))
    build_datalist(tmp_path, "duke_breast_mri")
    assert "1 masks have no image, the first masks/Breast_MRI_009.nii.gz" in caplog.text


def test_mask_of_another_shape_or_place(tmp_path: Path) -> None:
    write_duke(tmp_path)
    mask = tmp_path / "masks" / "Breast_MRI_002.nii.gz"
    write_nifti(mask, np.ones((6, 7, 4), np.uint8))
    shape = r"shape of its image.*Breast_MRI_002.nii.gz: \(6, 7, 4\) for \(6, 7, 5\) of .*MR_1.3.2"
    with pytest.raises(UserError, match=shape):
        verify_dataset(tmp_path, "duke_breast_mri", progress=False).raise_if_faulty()
    write_nifti(mask, np.ones((6, 7, 5), np.uint8), np.diag([1.0, 1, 2, 1]))
    with pytest.raises(UserError, match=r"affine of its image.*\[0.0, 0.0, 2.0, 0.0\].* for .*of .*MR_1.3.2"):
        verify_dataset(tmp_path, "duke_breast_mri", headers_only=True, progress=False).raise_if_faulty()


def test_listed_series_are_chosen_in_a_full_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = load_series(load_manifest("duke_breast_mri"))
    assert listed is not None
    uid = listed.series[0].uid
    for series in (uid, "1.3.1", "1.3.2"):
        folder = tmp_path / "Breast_MRI_001" / series
        write_dicom(folder, voxels(), np.eye(4), uid=series, patient="Breast_MRI_001", modality="MR")
    other = tmp_path / "Breast_MRI_002" / "own_export"
    write_dicom(other, voxels(), np.eye(4), uid="1.9", patient="Breast_MRI_002", modality="MR")
    with caplog.at_level(logging.INFO):
        found = find_volumes(tmp_path, load_manifest("duke_breast_mri"))
    assert [volume.path.name for volume in found] == [uid, "own_export"]
    assert "2 series that it does not list are left out" in caplog.text


def facts(name: str) -> dict[str, Any]:
    return load_manifest(name).fields


def test_numbers_of_the_papers() -> None:
    counts = {name: load_manifest(name).counts for name in SETS}
    assert counts["lidc_idri"] == {"subjects": 1010, "volumes": 1018}
    assert counts["duke_breast_mri"] == {"subjects": 922, "volumes": 922, "after_preprocessing": 2 * 922}
    assert {name: counts[name]["volumes"] for name in ("adni", "mrnet", "airogs", "chexpert", "crcdx")} == {
        "adni": 998,
        "mrnet": 1250,
        "airogs": 101_442,
        "chexpert": 191_027,
        "crcdx": 19_958,
    }
    for name in ("airogs", "chexpert", "crcdx"):
        assert sum(counts[name]["classes"].values()) == counts[name]["volumes"]
        assert tuple(counts[name]["classes"]) == tuple(facts(name)["classes"]["names"])
    batches = {name: facts(name)["reference_batch"]["size"] for name in SETS if "reference_batch" in facts(name)}
    assert batches == {"airogs": 6540, "crcdx": 19_958, "chexpert": 15_738}
    assert {name for name in SETS if load_manifest(name).split.by != "patient"} == {"mrnet", "airogs"}


@pytest.mark.parametrize("name", SETS)
def test_access_is_three_steps(name: str) -> None:
    assert len(facts(name)["access"]) == 3
    assert facts(name)["licence"] and facts(name)["source"]["citation"]


@pytest.mark.parametrize("name", SETS)
def test_manifests_bundles_and_phantoms_know_each_other(name: str) -> None:
    """What phantoms are called, whether they are images, and their classes are those of the data they stand in for."""
    manifest = load_manifest(name)
    kind = PHANTOM_KINDS[facts(name)["phantoms"]]
    assert facts(name)["bundle"] in bundle_names()
    assert kind.planar == manifest.planar
    names = manifest.classes.names if manifest.classes is not None else ()
    assert [word.removeprefix("no ") for word in names[1:]] == [*kind.classes[1:]]
