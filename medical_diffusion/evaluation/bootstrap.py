"""Bootstrap intervals of a mean over subjects (Efron 1979), the percentile method.

From n values, n are drawn with replacement and averaged, ``resamples`` times; the interval lies between the percentiles
``(1 - level) / 2`` and ``(1 + level) / 2`` of these means, and their standard deviation is the error bar of Medical
Diffusion, Figure 4. Drawing with replacement is drawing how often each value counts, a multinomial, so a chunk of
resamples is one matrix product.

The unit that is drawn must be what is independent: a subject, never a slice, a voxel or a repetition on the same
subject. Below some ten subjects the interval is too narrow. Resampling with replacement makes duplicates, which
distances between distributions (FID, KID) take for less variety: it is for means, not for those.

``scipy.stats.bootstrap`` gives the same interval but for chance, and is not used because it refuses fewer than two
values, where a report has to go on and say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medical_diffusion.errors import UserError

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; NaN where there is nothing to tell it from.

    Attributes:
        value: the figure itself, NaN where ``n`` is 0.
        low: lower end, NaN where ``n`` is below 2: one subject tells nothing about the next.
        high: upper end, likewise.
        n: subjects that it was computed from.
    """

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which knows no NaN: None in its place."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{k: None if math.isnan(v) else v for k, v in numbers.items()}, "n": self.n}

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "none"
        return f"{self.value:.3f}" + ("" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]")


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """The mean with its interval.

    Args:
        values: one finite number per subject, ``(n,)``; none gives an interval of NaN.
        resamples: how often the subjects are drawn, at least 2.
        level: share of the means that the interval holds, in (0, 1).
        seed: the same seed, number of values and resamples draw the same subjects.

    Raises:
        UserError: values that are not finite or not a list; resamples or level out of range.
    """
    if not 0 < level < 1:
        raise UserError("the level of an interval must lie between 0 and 1", level)
    values = _checked(values)
    means = bootstrap_means(values, resamples, seed)
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(values) == 1:
        return Interval(float(values[0]), math.nan, math.nan, 1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def bootstrap_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean of ``a`` less mean of ``b`` with its paired interval: each resample draws the same subjects for both.

    What makes a subject easy or hard for both cancels, so this interval is narrower than two separate ones suggest.

    Args:
        a: one finite number per subject, ``(n,)``.
        b: numbers of the same subjects in the same order, ``(n,)``.
        resamples, level, seed: as for :func:`bootstrap_interval`.

    Raises:
        UserError: different numbers of values, and as for :func:`bootstrap_interval`.
    """
    a, b = _checked(a), _checked(b)
    if len(a) != len(b):
        raise UserError("a paired difference needs the values of the same subjects", f"{len(a)} and {len(b)} values")
    return bootstrap_interval(a - b, resamples, level, seed)


def bootstrap_ratio(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean of ``a`` by mean of ``b`` with its interval; the sets are independent, and both are drawn in each resample.

    Args:
        a: one finite number per subject, ``(n,)``.
        b: numbers of other subjects, ``(m,)``, whose mean is not 0.
        resamples, level, seed: as for :func:`bootstrap_interval`.

    Returns:
        the ratio and n; without an interval where n or m is below 2.

    Raises:
        UserError: no values in ``b`` or a mean of 0, and as for :func:`bootstrap_interval`.
    """
    of_a, a, b = bootstrap_interval(a, resamples, level, seed), _checked(a), _checked(b)
    if len(b) == 0 or b.mean() == 0:
        raise UserError("a ratio needs a mean that is not 0 to divide by", f"{len(b)} values")
    value = of_a.value / float(b.mean())
    if min(len(a), len(b)) < 2:
        return Interval(value, math.nan, math.nan, len(a))
    with np.errstate(divide="ignore"):
        # another seed for b: the same one would draw the same places of both
        ratios = bootstrap_means(a, resamples, seed) / bootstrap_means(b, resamples, seed + 1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(a))


def bootstrap_deviation(values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Standard deviation of the resampled means, the error bar of Medical Diffusion; NaN below 2 values.

    Args:
        values, resamples, seed: as for :func:`bootstrap_interval`.

    Raises:
        UserError: as for :func:`bootstrap_interval`.
    """
    values = _checked(values)
    means = bootstrap_means(values, resamples, seed)
    return float(means.std(ddof=1)) if len(values) > 1 else math.nan


def bootstrap_means(values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of subjects drawn with replacement, ``(resamples,)`` float64; NaN where there are no values.

    Args:
        values, resamples, seed: as for :func:`bootstrap_interval`.

    Raises:
        UserError: as for :func:`bootstrap_interval`.
    """
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 2:
        raise UserError("a bootstrap needs at least 2 resamples", resamples)
    values = _checked(values)
    count = len(values)
    if count == 0:
        return np.full(resamples, math.nan)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // count)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    shares = np.full(count, 1 / count)
    return np.concatenate([generator.multinomial(count, shares, size=size) @ values for size in sizes]) / count


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values in float64, ``(n,)``."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("a bootstrap takes one number per subject", f"{error}") from error
    if array.ndim != 1:
        raise UserError("a bootstrap takes one number per subject", f"an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(
            "a bootstrap takes finite numbers",
            f"{int((~np.isfinite(array)).sum())} of {len(array)} are not",
            "Decide what an undefined figure of a subject counts as; leaving it out hides the failures",
        )
    return array
