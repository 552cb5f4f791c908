"""Agreement of a segmentation with its reference, per class and case: Dice, 95 % Hausdorff and mean surface distance.

Distances are in millimetres between the surfaces in both directions (MONAI's, with the voxels' spacing). Dice is
counted here, since MONAI's ``compute_dice`` treats a class that the reference does not hold alike whether it was
predicted or not (NaN), or calls its absence from both a perfect 1 (``ignore_empty=False``); MONAI's distances are then
NaN or infinite. Where a class

- is in neither map, there is nothing to judge: all three are None and the case does not count for the class;
- is in one map alone, Dice is 0 and both distances are the diagonal of the volume, the largest that could be: a
  structure that is missed, or invented, never improves a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import bootstrap_interval

PERCENTILE = 95.0
FIGURES = ("dice", "hausdorff95_mm", "surface_distance_mm")


@dataclass(frozen=True)
class ClassScore:
    """Of one class in one case; None where the class is in neither map."""

    dice: float | None
    hausdorff95_mm: float | None
    surface_distance_mm: float | None


def score_case(
    prediction: np.ndarray, reference: np.ndarray, classes: Sequence[str], spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> dict[str, ClassScore]:
    """Scores by class.

    Args:
        prediction: (H, W, D) of channel numbers; classes[n] is n + 1, the background 0.
        reference: likewise.
        classes: names of the foreground classes.
        spacing: millimetres per voxel.

    Raises:
        UserError: the maps differ in shape.
    """
    if prediction.shape != reference.shape:
        raise UserError("a segmentation must have the shape of its reference", f"{prediction.shape}, {reference.shape}")
    return {
        name: _score_class(prediction == channel, reference == channel, spacing)
        for channel, name in enumerate(classes, start=1)
    }


def _score_class(predicted: np.ndarray, true: np.ndarray, spacing: Sequence[float]) -> ClassScore:
    sizes = int(predicted.sum()), int(true.sum())
    if not any(sizes):
        return ClassScore(None, None, None)
    if not all(sizes):
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(true.shape, spacing, strict=True)))
        return ClassScore(0.0, diagonal, diagonal)
    dice = 2.0 * int((predicted & true).sum()) / sum(sizes)
    box = _box(predicted | true)
    axes = [n for n, size in enumerate(true.shape) if size > 1]  # the surface of an image is its outline
    flat = tuple({0, 1, 2} - set(axes))
    pair = [torch.from_numpy(mask[box].squeeze(flat).copy())[None, None] for mask in (predicted, true)]
    mm = [float(spacing[n]) for n in axes]
    hausdorff = compute_hausdorff_distance(*pair, include_background=True, percentile=PERCENTILE, spacing=mm)
    surface = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=mm)
    return ClassScore(dice, float(hausdorff), float(surface))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The part of the volume that holds ``mask``, with a margin so that its surface is not cut."""
    places = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(
        slice(max(0, int(p[0]) - 1), int(p[-1]) + 2) if n > 1 else slice(None)
        for p, n in zip(places, mask.shape, strict=True)
    )


def mean_dice(scores: dict[str, ClassScore]) -> float | None:
    """Of the classes that are there; None where none is."""
    values = [score.dice for score in scores.values() if score.dice is not None]
    return float(np.mean(values)) if values else None


def summarize(
    cases: Sequence[tuple[str, dict[str, ClassScore]]], classes: Sequence[str], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Means over subjects with 95 % bootstrap intervals; a subject with several cases counts once, by their mean.

    Args:
        cases: subject and :func:`score_case` of each.
        classes: names in the order of the report.
        resamples, seed: of the bootstrap.

    Returns:
        ``{"subjects": n, "classes": {name: {figure: interval}}, "mean_dice": interval}`` with intervals
        ``{"value", "low", "high", "n"}``; the value is None and n is 0 where no subject shows the class.
    """
    subjects = sorted({subject for subject, _ in cases})

    def interval(values: list[tuple[str, float | None]]) -> dict[str, Any]:
        per_subject = [
            float(np.mean(mine)) for s in subjects if (mine := [v for who, v in values if who == s and v is not None])
        ]
        return bootstrap_interval(per_subject, resamples=resamples, seed=seed).as_dict()

    return {
        "subjects": len(subjects),
        "classes": {
            name: {figure: interval([(s, getattr(scores[name], figure)) for s, scores in cases]) for figure in FIGURES}
            for name in classes
        },
        "mean_dice": interval([(subject, mean_dice(scores)) for subject, scores in cases]),
    }
