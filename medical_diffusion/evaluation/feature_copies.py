"""Are samples nearer to the training images than strangers are, in the space of features?

Beside the search in voxels (:mod:`copies`), features may know a copy that is rotated or redrawn. Each query is compared
in every flip, and as the search in voxels turns and moves it onto its best match: features see a shift of two voxels as
no smaller than the difference between two patients, and features of every shift would take an extraction each. All
are brought to the same brightness and contrast (:mod:`feature_views`). With d(x) the least Euclidean distance of the
features of these views of x to those of a training image, and strangers real images that were not trained on:

    ratio = mean d(samples) / mean d(strangers)      1: as new as strangers; below 1: samples lean on training images

A p-value comes from exchanging samples and strangers (:mod:`permutation`), as in the data-copying test of Meehan,
Chaudhuri and Dasgupta 2020, which compares the same distances. The interval draws samples and strangers with
replacement; the training images stay, so duplicates do no harm here. A few copies among many samples hardly move a
mean: the number of samples nearer than every stranger tells of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import LEVEL, Interval, bootstrap_means
from medical_diffusion.evaluation.copies import CopySearch, Matches
from medical_diffusion.evaluation.copy_rate import FEWEST_STRANGERS, HELD_OUT, LEFT_OUT, MAX_STRANGERS
from medical_diffusion.evaluation.distances.checks import checked_pair
from medical_diffusion.evaluation.feature_views import KeyedImages, View, Views
from medical_diffusion.evaluation.permutation import permutation_test

MINIMUM = 2
"""Images a set."""
CHUNK = 512
PART = 256
"""Images whose views are in memory at a time: of each all are extracted, and the nearest one is kept."""

Extract = Callable[[Views, str], np.ndarray]
"""Features (N, F) of views, with a label for a progress bar."""


@dataclass(frozen=True)
class FeatureMatches:
    """The training image of the most similar features.

    Attributes:
        distances: of each query to it, (Q,).
        indices: which one it is, (Q,).
        views: the query, moved and mirrored as it is most similar.
    """

    distances: np.ndarray
    indices: np.ndarray
    views: list[View]


@dataclass(frozen=True)
class FeatureCopies:
    """How near samples are to the training images.

    Attributes:
        ratio: mean distance of the samples by that of strangers, with its 95 % interval; ``n`` counts the samples.
        p_value: two-sided, of no difference between samples and strangers.
        nearer: samples nearer to a training image than every stranger.
        strangers: how many.
    """

    ratio: Interval
    p_value: float
    nearer: int
    strangers: int


class FeatureSearch:
    """Training images, prepared for the search: the features of one view of each are kept.

    Args:
        training: the images of ``voxels``.
        voxels: the search that turns and moves queries.
        extract: gives features.
        full_size: see :class:`~medical_diffusion.evaluation.feature_views.Views`.

    Raises:
        UserError: as ``extract``.
    """

    def __init__(self, training: KeyedImages, voxels: CopySearch, extract: Extract, full_size: bool = False) -> None:
        self._training, self._voxels, self._extract, self._full_size = training, voxels, extract, full_size
        self._features = self._of(training, [View(n) for n in range(len(training))], "Features, training images")

    def search(self, queries: KeyedImages, matches: Matches | None = None, label: str = "samples") -> FeatureMatches:
        """The nearest training image of each query.

        Args:
            queries: images of the training images' shape.
            matches: of the queries in ``voxels``; None searches there.
            label: of progress bars.

        Raises:
            UserError: no queries, or another shape; features that are not finite.
        """
        return self._nearest(queries, list(range(len(queries))), matches, label)

    def strangers(self, held_out: KeyedImages, seed: int = 0) -> tuple[FeatureMatches, str]:
        """The nearest training image of up to ``MAX_STRANGERS`` real images, drawn at random; and where these are from.

        Args:
            held_out: real images that were not trained on; with fewer than ten, training images are taken, each
                compared with the others.
            seed: of the draw.

        Raises:
            UserError: as :meth:`search`.
        """
        are_training = len(held_out) < FEWEST_STRANGERS
        images = self._training if are_training else held_out
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:MAX_STRANGERS]).tolist()
        found = self._nearest(images, chosen, None, "strangers", others=are_training)
        return found, LEFT_OUT if are_training else HELD_OUT

    def _nearest(
        self,
        images: KeyedImages,
        chosen: Sequence[int],
        matches: Matches | None,
        label: str,
        others: bool = False,
    ) -> FeatureMatches:
        if len(chosen) == 0:
            raise UserError("a search for copies needs at least one image", 0)
        width = len(self._voxels.flips) + 1
        distances, indices, nearest = [], [], []
        for start in range(0, len(chosen), PART):
            views: list[View] = []
            part = chosen[start : start + PART]
            place = f"{label} {start + 1} to {start + len(part)} of {len(chosen)}"
            for n in tqdm(part, f"Alignment, {place}", unit="image", leave=False, disable=matches is not None):
                match = matches or self._voxels.search([images[n]], [n] if others else None, label="")
                row = n if matches is not None else 0
                views += [View(n, flips) for flips in self._voxels.flips]
                views.append(View(n, match.flips[row], match.shifts[row]))
            features = self._of(images, views, f"Features in every flip, {place}")
            exclude = [view.image for view in views] if others else None
            found = nearest_training_image(features, self._features, exclude)
            best = found[0].reshape(-1, width).argmin(1) + width * np.arange(len(part))
            distances.append(found[0][best])
            indices.append(found[1][best])
            nearest += [views[n] for n in best]
        return FeatureMatches(np.concatenate(distances), np.concatenate(indices), nearest)

    def _of(self, images: KeyedImages, views: Sequence[View], label: str) -> np.ndarray:
        return self._extract(Views(images, views, self._voxels, self._full_size), label)


def feature_copies(samples: np.ndarray, strangers: np.ndarray, seed: int = 0) -> FeatureCopies:
    """Compare samples with strangers by the distance to the training images.

    Args:
        samples, strangers: distances (N,), (R,).
        seed: of permutations and resamples.

    Raises:
        UserError: fewer than two a set; strangers that are all training images.
    """
    for name, distances in (("samples", samples), ("strangers", strangers)):
        if len(distances) < MINIMUM:
            raise UserError(f"the distance to training images needs at least {MINIMUM} {name}", len(distances))
    if strangers.mean() <= 0:
        raise UserError("strangers must differ from the training images", f"{len(strangers)} of distance 0")
    means = [bootstrap_means(distances, seed=seed + n) for n, distances in enumerate((samples, strangers))]
    ratios = means[0] / np.maximum(means[1], np.finfo(float).tiny)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return FeatureCopies(
        Interval(float(samples.mean() / strangers.mean()), float(low), float(high), len(samples)),
        permutation_test(lambda a, b: float(a.mean() - b.mean()), samples, strangers, seed=seed),
        int((samples < strangers.min()).sum()),
        len(strangers),
    )


def nearest_training_image(
    queries: np.ndarray, training: np.ndarray, exclude: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of each query to the nearest training image, (N,), and which one that is, (N,).

    Args:
        queries: features (N, F).
        training: features (T, F).
        exclude: for each query a training image that does not count, such as itself.

    Raises:
        UserError: fewer than two images a set, different numbers of features, values that are not finite.
    """
    training, queries = checked_pair(training, queries, MINIMUM, "The nearest training image")
    centre = training.mean(0, dtype=np.float64)  # distances cancel less around it
    references = torch.from_numpy(training.astype(np.float64) - centre)
    found = []
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK].astype(np.float64) - centre
        distances = torch.cdist(torch.from_numpy(chunk), references)
        if exclude is not None:
            left_out = torch.as_tensor(exclude[start : start + CHUNK])
            distances[torch.arange(len(distances)), left_out] = torch.inf
        found.append(distances.min(1))
    return torch.cat([f.values for f in found]).numpy(), torch.cat([f.indices for f in found]).numpy()
