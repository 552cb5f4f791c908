"""Phantoms: the same seed gives the same chest, labels match HU, files are whole or absent."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medical_diffusion.data.phantoms import MASK_LABELS, PHANTOM_KINDS, chest_ct_phantom, write_phantoms, writer
from medical_diffusion.data.phantoms.registry import check_phantom_size
from medical_diffusion.errors import UserError

SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def phantoms():
    return [chest_ct_phantom(seed, SIZE) for seed in range(12)]


def centre_of(phantom, label: str) -> np.ndarray:
    index = np.argwhere(phantom.mask == MASK_LABELS[label]).mean(0)
    return phantom.affine[:3, :3] @ index + phantom.affine[:3, 3]


def test_a_seed_gives_the_same_phantom_whatever_was_drawn_before(phantoms):
    again = chest_ct_phantom(7, SIZE)
    assert np.array_equal(again.image, phantoms[7].image)
    assert np.array_equal(again.mask, phantoms[7].mask)
    assert again.facts == phantoms[7].facts
    assert not np.array_equal(again.image, phantoms[8].image)


def test_facts_and_anatomy_of_a_seed_do_not_depend_on_the_size():
    coarse, fine = chest_ct_phantom(3, SIZE), chest_ct_phantom(3, (64, 64, 64))
    for fact in ("heart_width_ratio", "nodules", "body_width_mm"):
        assert coarse.facts[fact] == fine.facts[fact]
    halved = fine.image.reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5))
    assert np.corrcoef(halved.ravel(), coarse.image.ravel())[0, 1] > 0.99


def test_organs_lie_where_ras_orientation_puts_them(phantoms):
    for phantom in phantoms:
        left, right, heart, spine, liver = (
            centre_of(phantom, label) for label in ("left_lung", "right_lung", "heart", "spine", "liver")
        )
        assert left[0] < spine[0] < right[0]
        assert heart[0] < (left[0] + right[0]) / 2, "the heart lies on the patient's left"
        assert spine[1] < heart[1], "the spine lies behind the heart"
        assert liver[2] < right[2]
        assert liver[0] > heart[0]


def test_labels_match_their_hounsfield_units(phantoms):
    limits = {
        "background": (-1010, -960),
        "left_lung": (-900, -720),
        "right_lung": (-900, -720),
        "heart": (0, 60),
        "liver": (20, 90),
        "spine": (150, 600),
    }
    for phantom in phantoms:
        for label, (low, high) in limits.items():
            assert low < phantom.image[phantom.mask == MASK_LABELS[label]].mean() < high, label


def test_phantoms_vary(phantoms):
    for fact in ("heart_width_ratio", "body_width_mm", "lung_height_mm", "noise_hu"):
        values = [phantom.facts[fact] for phantom in phantoms]
        assert len(set(values)) > 0.8 * len(values)
        assert np.ptp(values) > 0.1 * np.mean(values)
    assert len({len(phantom.facts["nodules"]) for phantom in phantoms}) >= 3


def test_every_nodule_is_in_the_mask_and_in_its_lung():
    for seed in range(12):
        phantom = chest_ct_phantom(seed, SIZE)
        for nodule in phantom.facts["nodules"]:
            world = np.append(nodule["centre_mm"], 1)
            index = tuple(np.round(np.linalg.inv(phantom.affine) @ world)[:3].astype(int))
            assert phantom.mask[index] == MASK_LABELS["nodules"]
            assert 9 <= nodule["diameter_mm"] <= 28


def test_mean_intensity_is_kept_across_sizes():
    means = [chest_ct_phantom(5, size).image.mean() for size in (16, 32, (64, 64, 32))]
    assert np.ptp(means) < 10


@pytest.mark.parametrize("size", [(40, 32, 1), (17, 20, 9), (1, 32, 32), 16])
def test_any_size_is_centred_on_the_field_of_view(size):
    phantom = chest_ct_phantom(1, size)
    shape = (size,) * 3 if isinstance(size, int) else size
    assert phantom.image.shape == phantom.mask.shape == shape
    assert phantom.image.dtype == np.float32
    assert phantom.mask.dtype == np.uint8
    middle = phantom.affine[:3, :3] @ ((np.array(shape) - 1) / 2) + phantom.affine[:3, 3]
    extent = np.diag(phantom.affine)[:3] * shape
    for axis in range(3):
        if shape[axis] > 1:
            assert middle[axis] == pytest.approx(0)
            assert extent[axis] == pytest.approx(320)


def test_depth_one_is_a_slice_through_the_heart():
    flat, full = chest_ct_phantom(2, (64, 64, 1)), chest_ct_phantom(2, (64, 64, 64))
    level = int(np.round((flat.affine[2, 3] - full.affine[2, 3]) / full.affine[2, 2]))
    heart = full.mask == MASK_LABELS["heart"]
    assert heart[..., level].sum() > 0.8 * heart.sum((0, 1)).max()
    assert np.corrcoef(flat.image.ravel(), full.image[..., level].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("field_of_view", [(320, 320), (320, 0, 320), (320, 320, float("nan"))])
def test_a_bad_field_of_view_is_refused(field_of_view):
    with pytest.raises(UserError, match="field_of_view must be three positive lengths"):
        chest_ct_phantom(0, SIZE, field_of_view)


def test_files_hold_the_phantom_and_the_listing_proves_it(tmp_path):
    folder = write_phantoms("chest_ct", tmp_path, 2, (16, 16, 8), seed=41, progress=False)
    assert folder == tmp_path / "chest_ct_16x16x8_n2_s41"
    listing = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    assert [subject["seed"] for subject in listing["subjects"]] == [41, 42]
    assert listing["labels"] == MASK_LABELS
    assert listing["intensity_unit"] == "HU"
    image = nibabel.load(folder / "images" / "chest_ct_00042.nii.gz")
    mask = nibabel.load(folder / "masks" / "chest_ct_00042.nii.gz")
    phantom = chest_ct_phantom(42, (16, 16, 8))
    assert image.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(image.get_fdata(), np.rint(phantom.image))
    assert np.array_equal(mask.get_fdata(), phantom.mask)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.affine, phantom.affine)
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "no temporary files stay"


def test_a_whole_folder_is_left_alone_and_a_damaged_one_is_rebuilt_equal(tmp_path, monkeypatch):
    arguments = ("chest_ct", tmp_path, 2, (8, 8, 8))
    folder = write_phantoms(*arguments, progress=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_folder", lambda *_: pytest.fail("written again"))
        assert write_phantoms(*arguments, progress=False) == folder
    (folder / "masks" / "chest_ct_00001.nii.gz").write_bytes(b"cut")
    write_phantoms(*arguments, progress=False)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "nifti_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms("chest_ct", tmp_path, 2, (8, 8, 8), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"enough free space.*No space left on device"):
        write_phantoms("chest_ct", tmp_path, 1, (8, 8, 8), progress=False)


def test_an_output_that_is_a_file_is_told_as_such(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="writable folder"):
        write_phantoms("chest_ct", tmp_path / "taken", 1, (8, 8, 8), progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chest_ctt", 1, (8, 8, 8), 0), "phantom kind must be a known one.*Did you mean chest_ct"),
        (("chest_ct", 0, (8, 8, 8), 0), "count of phantoms must be a whole number of at least 1.*Received: 0"),
        (("chest_ct", 1, (8, 8), 0), "image_size must be one or three positive whole numbers"),
        (("chest_ct", 1, (8, 8, 8), -1), "seed of phantoms must be a whole number of at least 0.*Received: -1"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, message):
    kind, count, size, seed = arguments
    with pytest.raises(UserError, match=message):
        write_phantoms(kind, tmp_path, count, size, seed, progress=False)


def test_every_kind_keeps_the_contract():
    for name, kind in PHANTOM_KINDS.items():
        phantom = kind.generate(0, (16, 16, 1 if kind.planar else 16))
        assert set(np.unique(phantom.mask)) <= set(kind.labels.values()), name
        json.dumps(phantom.facts)


@pytest.mark.parametrize(
    ("kind", "size", "rest"),
    [
        ("chest_ct", 1, r"\(1, 1, 1\)\. Use for example \(8, 8, 1\)"),
        ("brain_mri", (2, 2, 2), r"\(2, 2, 2\)\. Use for example \(8, 8, 2\)"),
        ("knee_mri", (16, 1, 1), r"Use for example \(16, 8, 1\)"),
        ("shapes", (7, 7, 64), r"Use for example \(8, 7, 64\)"),
        ("breast_mri", (4, 4, 4), r"Use for example \(8, 8, 4\)"),
        ("radiograph", (7, 32, 1), r"Use for example \(8, 32, 1\)"),
        ("fundus", (32, 1, 1), r"Use for example \(32, 8, 1\)"),
    ],
)
def test_a_size_that_shows_nothing_is_refused_before_anything_is_written(tmp_path, kind, size, rest):
    with pytest.raises(UserError, match=rf"^{kind} phantoms must have at least 8 voxels along two axes.*{rest}"):
        write_phantoms(kind, tmp_path, 1, size, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_sizes_and_single_slices_are_welcome():
    for name, kind in PHANTOM_KINDS.items():
        for size in [(8, 8, 1)] if kind.planar else [(8, 8, 1), (1, 8, 8), (8, 2, 8), (8, 8, 8)]:
            check_phantom_size(name, size)
            assert len(np.unique(kind.generate(0, size).mask)) > 1, (name, size)
