"""Do two generators differ, how certain is a figure, and what do real images score against real ones?

**Permutation test.** If two generators draw from one distribution, which of them drew a sample is a label without
meaning. The labels are exchanged at random n times; with b the number of times that the difference between the two is
at least as large in magnitude as the observed one, p = (b + 1) / (n + 1) is a valid p-value at any number of samples
(Phipson & Smyth 2010): never 0. ``scipy.stats.permutation_test`` is not used: it computes the statistic anew for each
permutation, where KID and FID here share what permutations have in common, and it doubles the smaller tail instead of
counting magnitudes.

**Subsampling.** The bootstrap draws with replacement, about a third of its images twice or more. FID, KID and balls
around neighbours take copies for less variety, so their bootstrap values lie around another figure than the one in
question, with the interval beside it. Subsets without replacement hold no copies. Statistics of random subsets of
m out of n images spread around their mean; that spread, times sqrt(m / (n - m)), is the uncertainty at n images
(delete-d jackknife, Shao & Wu 1989), and at m = n / 2 the factor is 1. The interval is that deviation times Student's t
with as many degrees of freedom as subsets less one: the outer quantiles of a few dozen values lie too far inside. It is
around the figure at n images: bias that falls with n, as of FID, stays in it. Where the true distance is 0 the spread
is that of a squared quantity, and the interval says no more than the order of magnitude; use the permutation test and
the floor there.

**Floor.** Real images split at random into halves score against one another what no generator can beat at that number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import LEVEL, Interval
from medical_diffusion.evaluation.distances.checks import checked_features, checked_pair
from medical_diffusion.evaluation.distances.fid import Moments, trace_of_root
from medical_diffusion.evaluation.distances.kid import kernel

Statistic = Callable[[np.ndarray, np.ndarray], float]
Statistics = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Several figures that share their work, by name."""

PERMUTATIONS = 1000
FID_PERMUTATIONS = 200
"""Each takes two eigenvalue decompositions."""
REPEATS = 100
MINIMUM = 2
_CHUNK = 256
"""Permutations that share one matrix product."""


def permutation_test(
    statistic: Statistic, a: np.ndarray, b: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p-value of ``statistic(a, b)`` against exchanged labels.

    Args:
        statistic: of two sets of rows, 0 where they do not differ, such as ``fid(real, a) - fid(real, b)``.
        a: features or values of the first generator, (N, ...).
        b: of the second, (M, ...).
        permutations: how many.
        seed: of the permutations.

    Returns:
        p in (0, 1].

    Raises:
        UserError: fewer than two rows a set, no permutations.
    """
    _check_counts(len(a), len(b), permutations)
    pool = np.concatenate([a, b])
    observed = abs(statistic(a, b))
    differences = [
        statistic(pool[chosen], pool[~chosen])
        for chosen in _progress(_labels(len(a), len(b), permutations, seed), permutations)
    ]
    return _p_value(observed, np.array(differences))


def permutation_test_kid(
    real: np.ndarray, a: np.ndarray, b: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """p-value of the difference in KID to the same real images, over all samples at once instead of subsets.

    The kernel of all pairs is computed once; a permutation sums parts of it.

    Args:
        real: features (R, F).
        a: of the first generator, (N, F).
        b: of the second, (M, F).
        permutations: how many.
        seed: of the permutations.

    Raises:
        UserError: as :func:`permutation_test`, or features that do not fit.
    """
    pool, real = _pooled(real, a, b, permutations)
    within = kernel(pool, pool)
    np.fill_diagonal(within, 0)
    towards_real = kernel(pool, real).mean(1)

    def unbiased(labels: np.ndarray) -> np.ndarray:
        """MMD² to the real set but for the real set's own term, of each column of labels (N + M, P)."""
        count = labels.sum(0)
        inner = np.einsum("np,np->p", labels, within @ labels) / (count * (count - 1))
        return inner - 2 * (towards_real @ labels) / count

    def differences(labels: np.ndarray) -> np.ndarray:
        return unbiased(labels) - unbiased(1 - labels)

    observed = np.arange(len(pool)) < len(a)
    found = []
    chunk: list[np.ndarray] = []
    for chosen in _progress(_labels(len(a), len(b), permutations, seed), permutations):
        chunk.append(chosen)
        if len(chunk) == _CHUNK:
            found.append(differences(np.stack(chunk, axis=1).astype(np.float64)))
            chunk = []
    if chunk:
        found.append(differences(np.stack(chunk, axis=1).astype(np.float64)))
    return _p_value(abs(float(differences(observed[:, None].astype(np.float64))[0])), np.concatenate(found))


def permutation_test_fid(
    real: np.ndarray, a: np.ndarray, b: np.ndarray, permutations: int = FID_PERMUTATIONS, seed: int = 0
) -> float:
    """p-value of the difference in FID to the same real images.

    With A a factor of the real covariance and X the samples' features, FID needs the eigenvalues of ``A X^T X A^T``
    only, with X centred: all samples are projected once, a permutation centres and decomposes.

    Args:
        real: features (R, F).
        a: of the first generator, (N, F).
        b: of the second, (M, F).
        permutations: how many.
        seed: of the permutations.

    Raises:
        UserError: as :func:`permutation_test`, or features that do not fit.
    """
    pool, real = _pooled(real, a, b, permutations)
    reference = Moments(real)
    pool = pool.astype(np.float64) - reference.mean
    projected = pool @ reference.factor.T
    squares = np.einsum("nf,nf->n", pool, pool)

    def distance(chosen: np.ndarray) -> float:
        """FID to the real set but for the trace of its covariance."""
        count = int(chosen.sum())
        mean = pool[chosen].mean(0)
        shift = float(mean @ mean)
        trace = (float(squares[chosen].sum()) - count * shift) / (count - 1)
        rows = projected[chosen]
        rows = (rows - rows.mean(0)) / np.sqrt(count - 1)
        root = trace_of_root(rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows)
        return shift + trace - 2 * root

    def difference(chosen: np.ndarray) -> float:
        return distance(chosen) - distance(~chosen)

    labels = _progress(_labels(len(a), len(b), permutations, seed), permutations)
    found = np.array([difference(chosen) for chosen in labels])
    return _p_value(abs(difference(np.arange(len(pool)) < len(a))), found)


def subsample_interval(
    statistic: Statistic,
    real: np.ndarray,
    synthetic: np.ndarray,
    share: float = 0.5,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """A figure between two sets with its interval from subsets without replacement; see the module's first lines.

    Args:
        statistic: of (real, synthetic), such as :func:`~medical_diffusion.evaluation.distances.fid.fid`.
        real: features (N, F).
        synthetic: features (M, F).
        share: of each set in a subset; the spread is scaled by ``sqrt(share / (1 - share))``.
        repeats: subsets.
        level: of the interval.
        seed: of the subsets.

    Returns:
        the statistic of the full sets, its interval, and the number of synthetic images.

    Raises:
        UserError: subsets of fewer than two images, a share or level outside (0, 1), fewer than two repeats.
    """
    return subsample_intervals(_alone(statistic), real, synthetic, share, repeats, level, seed)[_ALONE]


def subsample_intervals(
    statistics: Statistics,
    real: np.ndarray,
    synthetic: np.ndarray,
    share: float = 0.5,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
    values: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """:func:`subsample_interval` of several figures from the same subsets.

    Args:
        statistics: of (real, synthetic), by name.
        real, synthetic, share, repeats, level, seed: as for :func:`subsample_interval`.
        values: figures of the full sets to lay the intervals around; by default the statistics of these.

    Raises:
        UserError: as for :func:`subsample_interval`.
    """
    from scipy.stats import t

    if not (0 < share < 1 and 0 < level < 1) or repeats < 2:
        raise UserError(
            "share and level must lie between 0 and 1, and repeats be at least 2",
            f"share {share}, level {level}, repeats {repeats}",
        )
    sizes = [round(share * len(x)) for x in (real, synthetic)]
    if min(sizes) < MINIMUM:
        raise UserError(
            f"subsets must hold at least {MINIMUM} images",
            f"{sizes[0]} of {len(real)} real and {sizes[1]} of {len(synthetic)} synthetic",
            "Give more images, or a larger share",
        )
    found = statistics(real, synthetic) if values is None else values
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in _progress(range(repeats), repeats, "Subsets"):
        parts = [
            x[generator.choice(len(x), size, replace=False)] for x, size in zip((real, synthetic), sizes, strict=True)
        ]
        drawn.append(statistics(*parts))
    factor = float(t.ppf((1 + level) / 2, repeats - 1)) * np.sqrt(share / (1 - share))
    half = {name: factor * float(np.std([figures[name] for figures in drawn], ddof=1)) for name in found}
    return {
        name: Interval(float(value), float(value) - half[name], float(value) + half[name], len(synthetic))
        for name, value in found.items()
    }


@dataclass(frozen=True)
class Floor:
    """What real images score against real ones.

    Attributes:
        mean: over the splits.
        std: over the splits; they share images, so it is no uncertainty of the mean.
        n: images in each half.
    """

    mean: float
    std: float
    n: int


def real_floor(statistic: Statistic, real: np.ndarray, repeats: int = 10, seed: int = 0) -> Floor:
    """The statistic between random halves of the real set.

    FID depends on the number of images: it is the floor for generators that are judged with n images on both sides.

    Args:
        statistic: of two sets of features.
        real: features (N, F).
        repeats: splits.
        seed: of the splits.

    Raises:
        UserError: fewer than four images, no repeats.
    """
    return real_floors(_alone(statistic), real, repeats, seed)[_ALONE]


def real_floors(
    statistics: Statistics, real: np.ndarray, repeats: int = 10, seed: int = 0, most: int | None = None
) -> dict[str, Floor]:
    """:func:`real_floor` of several figures from the same splits.

    Args:
        statistics: of two sets of features, by name.
        real, repeats, seed: as for :func:`real_floor`.
        most: images of each half at most; for figures whose memory grows with the square of their number.

    Raises:
        UserError: as for :func:`real_floor`.
    """
    real = checked_features("real", real, 2 * MINIMUM, "The floor of real against real")
    if repeats < 1:
        raise UserError("the floor needs at least one split", repeats)
    half = min(len(real) // 2, most or len(real))
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in _progress(range(repeats), repeats, "Real against real"):
        order = generator.permutation(len(real))
        drawn.append(statistics(real[order[:half]], real[order[half : 2 * half]]))
    values = {name: np.array([found[name] for found in drawn]) for name in drawn[0]}
    return {name: Floor(float(found.mean()), float(found.std()), half) for name, found in values.items()}


_ALONE = "figure"


def _alone(statistic: Statistic) -> Statistics:
    return lambda a, b: {_ALONE: statistic(a, b)}


def _pooled(real: np.ndarray, a: np.ndarray, b: np.ndarray, permutations: int) -> tuple[np.ndarray, np.ndarray]:
    _check_counts(len(a), len(b), permutations)
    real, a = checked_pair(real, a, MINIMUM, "The permutation test")
    real, b = checked_pair(real, b, MINIMUM, "The permutation test")
    return np.concatenate([a, b]), real


def _check_counts(a: int, b: int, permutations: int) -> None:
    if min(a, b) < MINIMUM:
        raise UserError(f"the permutation test needs at least {MINIMUM} samples of each generator", f"{a} and {b}")
    if permutations < 1:
        raise UserError("the permutation test needs at least one permutation", permutations)


def _labels(a: int, b: int, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Which of the a + b samples count as the first generator's, (a + b,), boolean."""
    generator = np.random.default_rng(seed)
    observed = np.arange(a + b) < a
    return (generator.permutation(observed) for _ in range(permutations))


def _progress(items: Any, total: int, description: str = "Permutations") -> Any:
    return tqdm(items, desc=description, total=total, leave=False)


def _p_value(observed: float, permuted: np.ndarray) -> float:
    # equal but for rounding counts as equal: sets that do not differ must not seem to
    tolerance = 1e-9 * max(observed, float(np.abs(permuted).max()))
    exceeding = int((np.abs(permuted) >= observed - tolerance).sum())
    return (exceeding + 1) / (len(permuted) + 1)
