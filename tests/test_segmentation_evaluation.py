"""Dice and surface distances per class: known cases, edges, subjects; and probabilities carried to another grid."""

from __future__ import annotations

import math

import nibabel
import numpy as np
import pytest
import torch

from medical_diffusion.bundle.segmentation.overlay import agreement_planes, class_planes
from medical_diffusion.bundle.segmentation.segmenter import to_grid
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.segmentation import ClassScore, mean_dice, score_case, summarize

SPACING = (2.0, 1.0, 0.5)


def block(shape: tuple[int, int, int], low: int, high: int) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.uint8)
    labels[low:high, 2:6] = 1
    return labels


@pytest.mark.parametrize("shape", [(12, 9, 7), (12, 9, 1)])
def test_a_shift_is_measured_in_millimetres(shape: tuple[int, int, int]) -> None:
    true = block(shape, 3, 7)
    perfect = score_case(true, true, ["a"], SPACING)["a"]
    assert perfect == ClassScore(1.0, 0.0, 0.0)
    shifted = score_case(block(shape, 4, 8), true, ["a"], SPACING)["a"]
    assert shifted.dice == pytest.approx(2 * 3 / 8)
    assert shifted.hausdorff95_mm == pytest.approx(2.0), "one voxel along an axis of 2 mm"
    assert 0 < shifted.surface_distance_mm < 2.0
    finer = score_case(block(shape, 4, 8), true, ["a"], (1.0, 1.0, 0.5))["a"]
    assert finer.hausdorff95_mm == pytest.approx(1.0)


def test_a_class_in_neither_map_does_not_count_and_one_in_one_map_is_the_worst() -> None:
    shape = (12, 9, 7)
    true, nothing = block(shape, 3, 7), np.zeros(shape, dtype=np.uint8)
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, SPACING, strict=True)))
    for pair in ((true, nothing), (nothing, true)):
        scores = score_case(*pair, ["a", "b"], SPACING)
        assert scores["a"] == ClassScore(0.0, pytest.approx(diagonal), pytest.approx(diagonal))
        assert scores["b"] == ClassScore(None, None, None)
        assert mean_dice(scores) == 0.0
    assert mean_dice(score_case(nothing, nothing, ["a"])) is None
    with pytest.raises(UserError, match="must have the shape of its reference"):
        score_case(true, true[:-1], ["a"])


def test_a_summary_is_of_subjects() -> None:
    def case(dice: float | None) -> dict[str, ClassScore]:
        return {"a": ClassScore(dice, dice, dice), "never": ClassScore(None, None, None)}

    report = summarize([("p1", case(0.2)), ("p1", case(0.4)), ("p2", case(0.9)), ("p3", case(None))], ["a", "never"])
    dice = report["classes"]["a"]["dice"]
    assert report["subjects"] == 3 and dice["n"] == 2
    assert dice["value"] == pytest.approx((0.3 + 0.9) / 2) and 0.3 <= dice["low"] <= dice["high"] <= 0.9
    assert report["classes"]["never"]["dice"] == {"value": None, "low": None, "high": None, "n": 0}
    assert report["mean_dice"]["value"] == pytest.approx(0.6)


def oblique() -> np.ndarray:
    angle = 0.3
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.8, 1.2, 2.5])
    affine[:3, 3] = (30, -20, 5)
    return affine


def test_a_turned_grid_is_undone_exactly() -> None:
    """Axes permuted and flipped: every voxel comes back to its place."""
    truth = np.random.default_rng(0).integers(0, 3, (7, 6, 5))
    image = nibabel.Nifti1Image(truth.astype(np.uint8), oblique())
    turn = nibabel.orientations.io_orientation(image.affine)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(turn, [[2, 1], [0, -1], [1, 1]]))
    probabilities = torch.nn.functional.one_hot(torch.as_tensor(np.asarray(turned.dataobj)).long(), 3).movedim(-1, 0)
    found = to_grid(probabilities.float(), torch.as_tensor(turned.affine), image.affine, truth.shape)
    np.testing.assert_array_equal(found, truth)


def test_a_finer_grid_is_filled_by_position() -> None:
    coarse = torch.zeros(2, 6, 6, 6)
    coarse[1, 3:] = 1
    coarse[0, :3] = 1
    affine = np.eye(4)
    fine = np.diag([0.5, 1.0, 1.0, 1.0])
    fine[0, 3] = -0.25
    found = to_grid(coarse, torch.as_tensor(affine), fine, (12, 6, 6))
    assert found.shape == (12, 6, 6)
    assert not found[:6].any() and found[6:].all()


def test_overlays_show_right_in_green_and_wrong_in_red() -> None:
    image = np.random.default_rng(0).normal(size=(12, 9, 7))
    true = block((12, 9, 7), 3, 7)
    for prediction, main, other in ((true, 1, 0), (0 * true, 0, 1)):
        tile = agreement_planes(image, prediction, true, np.eye(4))[0].astype(int)
        difference = tile[..., main] - tile[..., other]
        assert difference.max() > 40 and difference.min() == 0, "one colour alone"
    assert [tile.shape[-1] for tile in class_planes(image, true, oblique())] == [3, 3, 3]
    flat = agreement_planes(image[..., :1], true[..., :1], true[..., :1], np.eye(4))
    assert len(flat) == 1 and flat[0].shape == (12, 9, 3)
