"""Memorisation in feature space, in a report: one figure a generator, and its samples nearest to training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.copy_rate import FEWEST_STRANGERS
from medical_diffusion.evaluation.feature_copies import FeatureCopies, feature_copies
from medical_diffusion.evaluation.report.figures import Figure, absent, of_interval

LISTED = 10


def feature_copy_figure(
    samples: np.ndarray, training: np.ndarray | None, held_out: np.ndarray, seed: int
) -> tuple[Figure, list[dict[str, Any]]]:
    """The figure ``feature_copy_ratio``, and the samples nearest to a training image, the nearest first.

    Args:
        samples: features (N, F).
        training: features (T, F); None where no training images were given.
        held_out: features of the real images that are no training images; with fewer than ten, training images stand in
            for strangers.
        seed: of what is drawn.
    """
    if training is None:
        return absent("no training images were given (--train)"), []
    try:
        strangers = held_out if len(held_out) >= FEWEST_STRANGERS else None
        copies = feature_copies(samples, training, strangers, seed)
    except UserError as error:
        return absent(error, seed=seed), []
    common = {"p": copies.p_value, "nearer_than_strangers": copies.nearer, "strangers": copies.source}
    return of_interval(copies.ratio, seed=seed, n_strangers=copies.strangers, **common), _nearest(copies)


def _nearest(copies: FeatureCopies) -> list[dict[str, Any]]:
    order = copies.distances.argsort(kind="stable")[:LISTED].tolist()
    return [
        {"sample": n, "training_image": int(copies.indices[n]), "distance": float(copies.distances[n])} for n in order
    ]


def nearness_note(name: str, entry: Mapping[str, Any]) -> str:
    """The figure as a sentence."""
    return (
        f"Features of {name}: samples are {entry['value']:.3g} times as far from the nearest training image as "
        f"{entry['n_strangers']} {entry['strangers']} (p = {entry['p']:.3g}); {entry['nearer_than_strangers']} of "
        f"{entry['n']} are nearer than all of these."
    )
