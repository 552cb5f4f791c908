"""Labelled data: pairs found in three ways, every kind of bad label told, subjects split, shares nested."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_dicom, write_nifti

from medical_diffusion.bundle.segmentation.segmenter import Segmentation
from medical_diffusion.bundle.segmentation.writer import ImagesToSegment, SegmentationWriter, images_to_segment
from medical_diffusion.data import LoadVolumed, build_datalist, build_labelled_list, draw_share
from medical_diffusion.data.listing.exposure import seen_subjects, training_marks
from medical_diffusion.errors import UserError

SHAPE = (9, 8, 7)
COUNT = 12


def label_map(n: int) -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:5, 2:6, 1:4] = 1
    labels[5:7, 2:6, 1:4] = 2 if n % 2 else 1
    return labels


def image(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve subjects in ``images`` and ``labels``."""
    for n in range(COUNT):
        write_nifti(tmp_path / "images" / f"case_{n:02d}.nii.gz", image(n))
        write_nifti(tmp_path / "labels" / f"case_{n:02d}.nii.gz", label_map(n))
    return tmp_path


def subjects(items: list[dict]) -> set[str]:
    return {item["subject"] for item in items}


def test_folders_give_pairs_and_a_split_by_subject(folder: Path) -> None:
    lists = build_labelled_list(folder)
    assert lists.classes == {"class_1": 1, "class_2": 2}
    parts = [subjects(part) for part in (lists.train, lists.validation, lists.test)]
    assert [len(part) for part in parts] == [9, 1, 2]
    assert len(set.union(*parts)) == COUNT
    for item in lists.train:
        assert Path(item["image"]).name == Path(item["label"]).name
        assert Path(item["label"]).parent.name == "labels"


def test_msd_names_classes_and_leaves_unlabelled_test_images_out(folder: Path) -> None:
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    write_nifti(folder / "imagesTs" / "case_90.nii.gz", image(90))
    by_folders = build_labelled_list(folder)
    training = [
        {"image": f"./imagesTr/case_{n:02d}.nii.gz", "label": f"./labelsTr/case_{n:02d}.nii.gz"} for n in range(COUNT)
    ]
    stated = {"labels": {"0": "background", "1": "anterior", "2": "posterior"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps({**stated, "test": ["./imagesTs/case_90.nii.gz"]}))
    lists = build_labelled_list(folder)
    assert lists.classes == {"anterior": 1, "posterior": 2}
    assert len(lists.train) == len(by_folders.train) == 9 and len(lists.test) == 2
    chosen = build_labelled_list(folder, classes=["posterior"])
    assert chosen.classes == {"posterior": 2}
    with pytest.raises(UserError, match=r"must be among those of dataset.json.*Did you mean posterior"):
        build_labelled_list(folder, classes=["posteriour"])


def test_a_manifest_says_where_label_maps_lie(folder: Path) -> None:
    (folder / "labels").rename(folder / "truth")
    layout = {"images": ["images/*.nii.gz"], "subject": "case_[0-9]+", "masks": {"paths": ["truth/{stem}.nii.gz"]}}
    fields: dict[str, Any] = {
        "name": "own",
        "title": "Own",
        "version": "1",
        "licence": "CC0",
        "source": {"url": "https://example.org"},
        "modality": "CT",
        "layout": layout,
    }
    manifest = folder.parent / "own.json"
    manifest.write_text(json.dumps(fields))
    assert len(build_labelled_list(folder, manifest=manifest).train) == 9
    fields["layout"] = {"images": layout["images"], "subject": layout["subject"]}
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="must say where label maps lie"):
        build_labelled_list(folder, manifest=manifest)


Break = Callable[[Path], object]


def write_label(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Break:
    def apply(folder: Path) -> None:
        path = folder / "labels" / "case_03.nii.gz"
        write_nifti(path, change(label_map(3)), *([affine] if affine is not None else []))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write_label(lambda a: a.astype(np.float32) * 0.5), "must hold whole numbers; received 0.5|whole numbers.*0.5"),
        (write_label(lambda a: a[:-1]), r"shape of its image.*\(8, 8, 7\) for an image of \(9, 8, 7\)"),
        (write_label(lambda a: a, np.diag([1.0, 1.0, 2.0, 1.0])), "the same affine.*mm apart"),
        (write_label(lambda a: np.arange(a.size, dtype=np.int16).reshape(a.shape)), "at most 256 values"),
        (lambda f: (f / "labels" / "case_03.nii.gz").unlink(), "an image must have a label map.*none in labels"),
        (lambda f: (f / "images" / "case_03.nii.gz").unlink(), "must have an image of its name"),
        (lambda f: (f / "labels" / "case_03.nii.gz").write_bytes(b"no image"), "case_03"),
    ],
)
def test_each_bad_label_is_told(folder: Path, damage: Break, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=f"(?s){message}"):
        build_labelled_list(folder)


def test_all_faults_are_listed_at_once(folder: Path) -> None:
    write_nifti(folder / "labels" / "case_01.nii.gz", label_map(1)[:, :-1])
    write_nifti(folder / "labels" / "case_02.nii.gz", label_map(2) * 7)
    (folder / "labels" / "case_04.nii.gz").unlink()
    with pytest.raises(UserError, match=r"(?s)case_04.*case_01.*case_02.*7 in \d+ voxels.*In all 3 faults"):
        build_labelled_list(folder, classes=["a", "b"])


def test_unexpected_values_are_told_with_the_classes(folder: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)values of its classes only \(0 background, 1 one\).*2 in 24 voxels"):
        build_labelled_list(folder, classes=["one"])


def test_whole_numbers_stored_as_floats_are_accepted_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_label(lambda a: a.astype(np.float64))(folder)
    with caplog.at_level(logging.INFO):
        assert len(build_labelled_list(folder).train) == 9
    assert "1 of 12 label maps store their whole numbers as floats" in caplog.text


def test_a_rounding_of_the_affine_is_no_fault(folder: Path) -> None:
    write_label(lambda a: a, np.diag([1.001, 1.0, 1.0, 1.0]))(folder)
    assert len(build_labelled_list(folder).train) == 9


def test_no_foreground_is_told(folder: Path) -> None:
    for path in (folder / "labels").iterdir():
        write_nifti(path, np.zeros(SHAPE, dtype=np.uint8))
    with pytest.raises(UserError, match="must hold a foreground"):
        build_labelled_list(folder)


def test_folders_without_pairs_are_told(tmp_path: Path) -> None:
    write_nifti(tmp_path / "images" / "a.nii.gz", image(0))
    with pytest.raises(UserError, match="must hold images with label maps"):
        build_labelled_list(tmp_path)


def test_shares_are_nested_and_the_other_parts_stay(folder: Path) -> None:
    lists = [build_labelled_list(folder, label_fraction=f, subset_seed=1) for f in (5, 20, 40, 100)]
    sizes = [len(part.train) for part in lists]
    assert sizes == [1, 2, 4, 9], "rounded up to whole subjects"
    for smaller, larger in pairwise(lists):
        assert subjects(smaller.train) < subjects(larger.train)
        assert (smaller.validation, smaller.test) == (larger.validation, larger.test)
        assert smaller.data == larger.data and smaller.fingerprint != larger.fingerprint
    others = {
        frozenset(subjects(build_labelled_list(folder, label_fraction=40, subset_seed=s).train)) for s in range(4)
    }
    assert len(others) > 1, "repeats draw other subjects"


def test_the_share_depends_on_ids_alone() -> None:
    ids = [f"p{n}" for n in range(50)]
    first = draw_share(ids, 30, seed=2)
    assert draw_share(reversed(ids), 30, seed=2) == first and len(first) == 15
    assert draw_share(ids, 14, seed=2) == first[:7]


@pytest.mark.parametrize("percent", [0.0, -5.0, 100.5])
def test_a_share_that_leaves_no_volume(percent: float) -> None:
    with pytest.raises(UserError, match=r"percent of the training subjects, in \(0, 100\]"):
        draw_share(["a", "b"], percent)


def test_a_share_without_foreground_and_one_without_a_class(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (only,) = subjects(build_labelled_list(folder, label_fraction=1).train)
    other = next(s for s in subjects(build_labelled_list(folder).train) if s != only)
    write_nifti(folder / "labels" / f"{only}.nii.gz", np.minimum(label_map(0), 1))
    write_nifti(folder / "labels" / f"{other}.nii.gz", label_map(1))
    with caplog.at_level(logging.WARNING):
        build_labelled_list(folder, label_fraction=1)
    assert "No label map of these 1 training volumes holds class_2" in caplog.text
    write_nifti(folder / "labels" / f"{only}.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    with pytest.raises(UserError, match="must leave a foreground"):
        build_labelled_list(folder, label_fraction=1)


def test_what_was_surveyed_is_remembered_until_a_file_changes(folder: Path, tmp_path: Path) -> None:
    memory = tmp_path / "cache" / "maps.json"
    first = build_labelled_list(folder, memory=memory)
    assert len(json.loads(memory.read_text(encoding="utf-8"))) == COUNT
    assert build_labelled_list(folder, memory=memory).fingerprint == first.fingerprint
    write_label(lambda a: a.astype(np.float32) + 0.25)(folder)
    with pytest.raises(UserError, match="whole numbers"):
        build_labelled_list(folder, memory=memory)


def test_rewritten_voxels_of_a_detached_label_map_are_surveyed_again(folder: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = folder / "labels" / "case_00"
    read = sitk.ReadImage(f"{path}.nii.gz")
    sitk.WriteImage(sitk.Cast(read, sitk.sitkUInt8), f"{path}.mhd")
    path.with_suffix(".nii.gz").unlink()
    build_labelled_list(folder, memory=tmp_path / "maps.json", classes=["a", "b"])
    header = path.with_suffix(".mhd").read_bytes()
    path.with_suffix(".raw").write_bytes(bytes([7]) * path.with_suffix(".raw").stat().st_size)
    assert path.with_suffix(".mhd").read_bytes() == header
    with pytest.raises(UserError, match=r"case_00\.mhd.* 7"):
        build_labelled_list(folder, memory=tmp_path / "maps.json", classes=["a", "b"])


def msd_list(folder: Path, **others: Any) -> Path:
    """The folder as the Medical Segmentation Decathlon lays it out."""
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    names = [f"case_{n:02d}.nii.gz" for n in range(COUNT)]
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "a", "2": "b"}, "training": training, **others}))
    return folder


def test_subjects_are_called_alike_with_and_without_a_list(folder: Path) -> None:
    listed = build_labelled_list(msd_list(folder))
    images = build_datalist(folder, test_fraction=0.2)
    for part in ("train", "validation", "test"):
        assert subjects(getattr(listed, part)) == subjects(getattr(images, part))
    by_list = build_datalist(folder, datalist=folder / "dataset.json", test_fraction=0.2)
    assert subjects(by_list.test) == subjects(listed.test)


def test_the_salt_of_a_manifest_splits_labelled_images_too(folder: Path) -> None:
    layout = {"images": ["images/*.nii.gz"], "subject": "case_[0-9]+", "masks": {"paths": ["labels/{stem}.nii.gz"]}}
    fields: dict[str, Any] = {"name": "own", "title": "Own", "version": "1", "licence": "CC0", "modality": "CT"}
    fields |= {"source": {"url": "https://example.org"}, "layout": layout, "split": {"by": "patient", "salt": "second"}}
    manifest = folder.parent / "salted.json"
    manifest.write_text(json.dumps(fields))
    labelled = build_labelled_list(folder, manifest=manifest)
    images = build_datalist(folder, manifest=manifest, validation_fraction=0.1, test_fraction=0.2)
    assert subjects(labelled.test) == subjects(images.test) != subjects(build_labelled_list(folder).test)


def test_what_training_saw_is_known_again_by_id_or_by_image(folder: Path) -> None:
    lists = build_labelled_list(folder)
    marks = training_marks(lists.train)
    assert seen_subjects(lists.test, marks) == [] == seen_subjects(lists.train, [])
    assert seen_subjects(lists.train, marks) == lists.subjects("train")
    (one, *_), other = lists.train, lists.test[0]
    assert seen_subjects([{**one, "subject": "renamed"}], marks) == ["renamed"], "the same file"
    assert seen_subjects([{**one, "image": other["image"]}], marks) == [one["subject"]], "the same patient"
    assert not any(one["subject"] in mark for mark in marks)


def test_other_images_of_one_shape_are_not_taken_for_those_of_training(tmp_path: Path) -> None:
    """Black borders make the ends of uncompressed files alike; slices of two series share names and sizes."""
    voxels = np.zeros((2, 40, 40, 40), np.int16)
    voxels[:, 10:30, 10:30, 10:30] = np.random.default_rng(0).integers(0, 100, (2, 20, 20, 20))
    items = []
    for n in range(2):
        nifti, detached = tmp_path / f"n{n}.nii", tmp_path / f"h{n}.mhd"
        write_nifti(nifti, voxels[n])
        write_dicom(tmp_path / f"d{n}", voxels[n, :, :, 15:18], np.eye(4))
        (tmp_path / f"h{n}.raw").write_bytes(voxels[n].tobytes())
        detached.write_text("NDims = 3\nElementDataFile = voxels.raw\n".replace("voxels", f"h{n}"), encoding="utf-8")
        items.append([{"image": str(p), "subject": f"s{n}"} for p in (nifti, tmp_path / f"d{n}", detached)])
    for first, second in zip(*items, strict=True):
        assert seen_subjects([second], training_marks([first])) == [], first["image"]
        assert seen_subjects([{**first, "subject": "renamed"}], training_marks([first])) == ["renamed"]


def test_a_list_of_test_images_alone_is_for_evaluation(folder: Path) -> None:
    rows = [f"images/case_{n:02d}.nii.gz,labels/case_{n:02d}.nii.gz,test" for n in range(4)]
    table = folder / "held_out.csv"
    table.write_text("\n".join(["image,label,split", *rows]))
    lists = build_labelled_list(folder, datalist=table, training=False)
    assert (len(lists.train), len(lists.validation), len(lists.test)) == (0, 0, 4)
    with pytest.raises(UserError, match=r"must state subjects to train on.*4 subjects of test"):
        build_labelled_list(folder, datalist=table)


def test_nnunet_folders_take_the_names_of_their_dataset_json(folder: Path) -> None:
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    for path in sorted((folder / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    stated = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}, "numTraining": COUNT}
    (folder / "dataset.json").write_text(json.dumps(stated))
    lists = build_labelled_list(folder)
    assert lists.classes == {"liver": 1, "tumour": 2} and len(lists.train) == 9
    names = [f"case_{n:02d}.nii.gz" for n in range(COUNT)]
    training = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({**stated, "training": training}))
    first = build_labelled_list(folder).train[0]
    assert first["image"].endswith("_0000.nii.gz"), "the list leaves the channel out"


def write_series(root: Path) -> Path:
    """Twelve series in folders called after UIDs, with label maps of their names."""
    voxels = np.random.default_rng(0).integers(0, 100, (8, 8, 6)).astype(np.int16)
    label = np.zeros(voxels.shape, np.uint8)
    label[2:4, 2:4, 2:4] = 1
    for n in range(COUNT):
        write_dicom(root / "images" / f"1.2.840.{n}", voxels, np.eye(4), uid=f"1.2.840.{n}", patient="")
        write_nifti(root / "labels" / f"1.2.840.{n}.nii.gz", label)
    return root


def test_folders_of_series_keep_their_whole_names(tmp_path: Path) -> None:
    root = write_series(tmp_path)
    lists = build_labelled_list(root)
    found = [*lists.train, *lists.validation, *lists.test]
    assert subjects(found) == {f"1.2.840.{n}" for n in range(COUNT)}
    items = images_to_segment(root / "images")
    assert {item["name"] for item in items} == {f"1.2.840.{n}" for n in range(COUNT)}
    (alone,) = images_to_segment(root / "images" / "1.2.840.7")
    assert alone["name"] == "1.2.840.7"


def test_two_images_whose_maps_would_have_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    write_nifti(folder / "images" / "case_00.nii", image(0))
    (tmp_path / "model.pt").write_bytes(b"weights")
    writer = SegmentationWriter(tmp_path / "out", tmp_path / "model.pt", {"a": 1})
    with pytest.raises(UserError, match=r"must have different names.*case_00.nii and .*case_00.nii.gz"):
        len(ImagesToSegment(str(folder / "images"), False, writer))


def test_maps_belong_to_their_images_and_are_no_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")

    def missing(source: Path, output: Path) -> int:
        return len(ImagesToSegment(str(source), False, SegmentationWriter(output, tmp_path / "model.pt", {"a": 1})))

    first, second, out = folder / "images", tmp_path / "other", folder / "images" / "sub" / "out"
    for n in range(COUNT):
        write_nifti(second / f"case_{n:02d}.nii.gz", image(n + 1))
    writer = SegmentationWriter(out, tmp_path / "model.pt", {"a": 1})
    shape = image(0).shape
    for item in images_to_segment(first)[:3]:
        writer.write(item, Segmentation(np.ones(shape, np.uint8), np.eye(4)))
    assert missing(first, out) == COUNT - 3, "its own maps are skipped, and no images"
    with pytest.raises(UserError, match=r"must be of the same images.*case_00.nii.gz.*another --output_dir"):
        missing(second, out)
    listing = json.loads((out / "segmentations.json").read_text(encoding="utf-8"))
    (out / "segmentations.json").write_text(json.dumps({**listing, "images": {}}))
    with pytest.raises(UserError, match="or of unknown ones"):
        missing(first, out)
    with pytest.raises(UserError, match="need a folder of their own"):
        missing(first, first)


def test_the_series_that_a_manifest_chooses_is_read(tmp_path: Path) -> None:
    small, large = np.ones((6, 6, 4), np.int16), np.ones((8, 8, 6), np.int16)
    files = []
    for n in range(3):
        place = tmp_path / "set" / f"p{n}"
        write_dicom(place, small, np.eye(4), uid=f"1.1.{n}")
        write_dicom(place, large, np.eye(4), uid=f"1.2.{n}")
        write_nifti(tmp_path / "set" / f"p{n}.nii.gz", large.astype(np.uint8))
        files.append({"path": f"p{n}", "subject": f"p{n}", "series_uid": f"1.2.{n}", "label": f"p{n}.nii.gz"})
    fields: dict[str, Any] = {"name": "own", "title": "Own", "version": "1", "licence": "CC0", "modality": "CT"}
    fields |= {
        "source": {"url": "https://example.org"},
        "files": files,
        "layout": {"images": ["p*"], "subject": "p[0-9]"},
    }
    (tmp_path / "own.json").write_text(json.dumps(fields))
    lists = build_labelled_list(tmp_path / "set", manifest=tmp_path / "own.json")
    for item in [*lists.train, *lists.validation]:
        assert item["series_uid"] == f"1.2.{item['subject'][1:]}"
        assert LoadVolumed(["image", "label"])(item)["image"].shape == large.shape


def test_a_corrected_voxel_and_a_rewritten_image_are_seen(folder: Path) -> None:
    big = np.random.default_rng(0).integers(0, 2, (40, 40, 40)).astype(np.uint8)
    path = write_nifti(folder / "labels" / "case_00.nii", big)
    (folder / "labels" / "case_00.nii.gz").unlink()
    write_nifti(folder / "images" / "case_00.nii.gz", np.zeros(big.shape, np.float32))
    before = build_labelled_list(folder)
    big[20, 20, 20] ^= 1
    write_nifti(path, big)
    after = build_labelled_list(folder)
    assert after.data != before.data
    os.utime(folder / "images" / "case_01.nii.gz", ns=(0, 0))
    assert build_labelled_list(folder).data == after.data, "a file that is only touched stays the same"
    image = np.zeros(big.shape, np.float32)
    image[20, 20, 20] = 1
    (folder / "images" / "case_00.nii.gz").unlink()
    write_nifti(folder / "images" / "case_00.nii", image)
    plain = build_labelled_list(folder)
    write_nifti(folder / "images" / "case_00.nii", 2 * image)
    assert build_labelled_list(folder).data != plain.data, "one voxel in the middle of a file without a checksum"
