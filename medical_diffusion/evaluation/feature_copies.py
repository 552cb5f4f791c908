"""Are samples nearer to the training images than strangers are, in the space of features?

Beside the search in voxels (:mod:`copies`), which knows flips and shifts only, features may know a copy that is rotated
or redrawn. With d(x) the Euclidean distance of the features of x to those of the nearest training image, and strangers
real images that were not trained on:

    ratio = mean d(samples) / mean d(strangers)      1: as new as strangers; below 1: samples lean on training images

A p-value comes from exchanging samples and strangers (:mod:`permutation`), as in the data-copying test of Meehan,
Chaudhuri and Dasgupta 2020, which compares the same distances. The interval draws samples and strangers with
replacement; the training images stay, so duplicates do no harm here. A few copies among many samples hardly move a
mean: the number of samples nearer than every stranger tells of those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import LEVEL, Interval, bootstrap_means
from medical_diffusion.evaluation.distances.checks import checked_pair
from medical_diffusion.evaluation.permutation import permutation_test

MINIMUM = 2
"""Images a set."""
CHUNK = 512
HELD_OUT = "held-out real images"
LEFT_OUT = "training images, each compared with the others"


@dataclass(frozen=True)
class FeatureCopies:
    """Distances to the training images.

    Attributes:
        ratio: mean distance of the samples by that of strangers, with its 95 % interval; ``n`` counts the samples.
        p_value: two-sided, of no difference between samples and strangers.
        nearer: samples nearer to a training image than every stranger.
        strangers: how many, and ``source``: where they come from.
        distances: of each sample to its nearest training image, (N,).
        indices: which one that is, (N,).
    """

    ratio: Interval
    p_value: float
    nearer: int
    strangers: int
    source: str
    distances: np.ndarray
    indices: np.ndarray


def feature_copies(
    samples: np.ndarray, training: np.ndarray, strangers: np.ndarray | None = None, seed: int = 0
) -> FeatureCopies:
    """Compare samples with strangers by the distance to the training images.

    Args:
        samples: features (N, F).
        training: features (T, F).
        strangers: features (R, F) of real images that were not trained on; None takes the training images, each
            compared with the others.
        seed: of permutations and resamples.

    Raises:
        UserError: fewer than two images a set, features that do not fit, training images that are all the same.
    """
    distances, indices = nearest_training_image(samples, training)
    if strangers is None:
        far, source = nearest_training_image(training, training, others=True)[0], LEFT_OUT
    else:
        far, source = nearest_training_image(strangers, training)[0], HELD_OUT
    if far.mean() <= 0:
        raise UserError("strangers must differ from the training images", f"{len(far)} {source} of distance 0")
    ratios = bootstrap_means(distances, seed=seed) / np.maximum(
        bootstrap_means(far, seed=seed + 1), np.finfo(float).tiny
    )
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return FeatureCopies(
        Interval(float(distances.mean() / far.mean()), float(low), float(high), len(distances)),
        permutation_test(lambda a, b: float(a.mean() - b.mean()), distances, far, seed=seed),
        int((distances < far.min()).sum()),
        len(far),
        source,
        distances,
        indices,
    )


def nearest_training_image(
    queries: np.ndarray, training: np.ndarray, others: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of each query to the nearest training image, (N,), and which one that is, (N,).

    Args:
        queries: features (N, F).
        training: features (T, F).
        others: the queries are the training images, and none is its own neighbour.

    Raises:
        UserError: fewer than two images a set, different numbers of features, values that are not finite.
    """
    training, queries = checked_pair(training, queries, MINIMUM, "The nearest training image")
    centre = training.mean(0, dtype=np.float64)  # distances cancel less around it
    x, y = (torch.from_numpy(features.astype(np.float64) - centre) for features in (queries, training))
    found = []
    for start in range(0, len(x), CHUNK):
        distances = torch.cdist(x[start : start + CHUNK], y)
        if others:
            rows = torch.arange(len(distances))
            distances[rows, start + rows] = torch.inf
        found.append(distances.min(1))
    return torch.cat([f.values for f in found]).numpy(), torch.cat([f.indices for f in found]).numpy()
