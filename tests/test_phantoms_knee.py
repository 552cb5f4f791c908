"""Knee phantoms: bones, cartilage and ligaments in place; the class is the anterior cruciate ligament."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest

from medical_diffusion.data.listing.datalist import build_datalist
from medical_diffusion.data.phantoms import PHANTOM_KINDS, PHANTOM_LABELS, write_phantoms
from medical_diffusion.data.phantoms.knee_mri import CLASSES, MASK_LABELS, Knee, knee_mri_phantom
from medical_diffusion.evaluation.agreement import area_under_roc


def centre_of(phantom, name: str) -> np.ndarray:
    """World coordinates (mm, RAS) of the middle of a label."""
    return nibabel.affines.apply_affine(phantom.affine, np.argwhere(phantom.mask == MASK_LABELS[name]).mean(0))


def mean_of(phantom, name: str) -> float:
    return float(phantom.image[phantom.mask == MASK_LABELS[name]].mean())


@pytest.fixture(scope="module")
def knees():
    return [knee_mri_phantom(seed, (32, 32, 16)) for seed in range(110)]


def is_torn(phantom) -> bool:
    return phantom.facts["class_name"] == "torn"


def test_the_bones_lie_in_their_places(knees):
    for phantom in knees[:8]:
        femur, tibia, patella, fibula, tendons = (
            centre_of(phantom, name) for name in ("femur", "tibia", "patella", "fibula", "tendons")
        )
        assert femur[2] > tibia[2] + 40 and patella[1] > femur[1] + 25
        assert tendons[1] > tibia[1] + 20
        assert fibula[1] < tibia[1] and np.sign(fibula[0]) == (1 if phantom.facts["side"] == "right" else -1)


def test_fluid_is_brightest_and_ligaments_and_menisci_are_black():
    for seed in range(2):
        phantom = knee_mri_phantom(seed, (80, 80, 32))
        value = {name: mean_of(phantom, name) for name in MASK_LABELS}
        assert value["fluid"] > value["cartilage"] > value["muscle"] > value["femur"]
        assert max(value["menisci"], value["tendons"], value["posterior_cruciate"]) < 0.5 * value["muscle"]
        assert value["femur"] == pytest.approx(value["tibia"], rel=0.25)


def test_half_of_the_knees_are_torn_whatever_else_they_have(knees):
    assert sum(map(is_torn, knees)) == len(knees) // 2
    assert PHANTOM_KINDS["knee_mri"].classes == CLASSES
    effusion = np.array([p.facts["effusion"] for p in knees])
    torn = np.array([is_torn(p) for p in knees])
    assert 0.2 < (effusion == 0).mean() < 0.6
    assert abs(effusion[torn].mean() - effusion[~torn].mean()) < 0.12, "fluid does not tell the class"
    right = np.array([p.facts["side"] == "right" for p in knees])
    assert 0.35 < right.mean() < 0.65


@pytest.mark.parametrize("seed", range(6))
def test_an_intact_ligament_is_black_from_end_to_end_and_a_torn_one_is_bright_in_between(seed):
    phantom = knee_mri_phantom(seed, (80, 80, 40))
    knee = Knee.draw(np.random.default_rng([seed, 0]))
    upper, lower = (knee.turn @ (knee.size * end) + knee.shift for end in knee.cruciate)
    points = upper + np.linspace(0.1, 0.9, 17)[:, None] * (lower - upper)
    index = np.round(nibabel.affines.apply_affine(np.linalg.inv(phantom.affine), points)).astype(int)
    along = phantom.image[tuple(index.T)]
    assert (phantom.mask[tuple(index.T)] == MASK_LABELS["anterior_cruciate"]).mean() > 0.8
    if is_torn(phantom):
        assert along.max() > 550 and (along > 400).mean() > 0.35
    else:
        assert along.max() < 250, "continuous"


def test_a_linear_classifier_learns_the_class_from_the_picture(knees):
    images = np.stack([p.image[4:28, 8:24, 4:12] for p in knees]).reshape(len(knees), 12, 2, 8, 2, 8).mean((2, 4))
    features = images.reshape(len(knees), -1)
    torn, train = np.array([is_torn(p) for p in knees]), 80
    features = (features - features[:train].mean(0)) / features[:train].std()
    kernel = features @ features[:train].T
    ridge = 0.02 * np.trace(kernel[:train]) * np.eye(train)
    weights = np.linalg.solve(kernel[:train] + ridge, 2.0 * torn[:train] - 1)
    assert area_under_roc(kernel[train:] @ weights, torn[train:]) > 0.9


def test_written_knees_carry_their_class_into_a_datalist(tmp_path):
    folder = write_phantoms("knee_mri", tmp_path, 12, (16, 16, 8), seed=3, progress=False, max_workers=1)
    with (folder / PHANTOM_LABELS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["torn", "intact"] * 6
    found = build_datalist(folder, datalist=folder / PHANTOM_LABELS, classes=CLASSES)
    assert found.classes == CLASSES
    items = [item for part in (found.train, found.validation, found.test) for item in part]
    assert len(items) == 12
    for item in items:
        seed = int(str(item["subject"]).rsplit("_", 1)[1])
        assert item["class_label"] == seed % 2
    stored = nibabel.load(folder / rows[0]["image"])
    assert nibabel.aff2axcodes(stored.affine) == ("A", "S", "R")
    assert stored.shape == (16, 16, 8)
