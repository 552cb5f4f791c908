"""One figure of a report: its value, its interval, and what it was computed from; or why there is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import Interval, bootstrap_ratio
from medical_diffusion.evaluation.distances import fid, fid_infinity, kid, precision_recall_density_coverage
from medical_diffusion.evaluation.distances.kid import SUBSET_SIZE, mmd_squared
from medical_diffusion.evaluation.features.extraction import Images
from medical_diffusion.evaluation.permutation import Statistics, real_floors, subsample_intervals
from medical_diffusion.evaluation.spectrum import high_frequency_energy

Figure = dict[str, Any]

MANIFOLD = ("precision", "recall", "density", "coverage")
MOST = {"fid": math.inf, "precision": 1.0, "recall": 1.0, "density": math.inf, "coverage": 1.0}
"""The largest value that a figure can take; the least is 0. Others have no bounds."""
INTERVAL_REPEATS = 30
INTERVAL_SHARE = 0.5
"""Of the images in one subset."""
MOST_IN_SUBSET = 1000
"""Of large sets less than that share is drawn: thirty subsets of more take longer than the interval is worth."""
FEWEST_IN_SMALL_SHARE = 100
"""Where less than half is drawn, the spread is carried over to larger sets, and must be that of images enough."""


def figure(value: float | None, low: float | None = None, high: float | None = None, **more: Any) -> Figure:
    """A figure for JSON: None where a number is not finite."""
    numbers = {"value": value, "low": low, "high": high}
    finite = {k: None if v is None or not math.isfinite(v) else float(v) for k, v in numbers.items()}
    return {**finite, **more}


def absent(error: UserError | str, **more: Any) -> Figure:
    """A figure that could not be computed, and why."""
    return figure(None, reason=str(error), **more)


def of_interval(interval: Interval, **more: Any) -> Figure:
    """A figure of an interval."""
    return figure(interval.value, interval.low, interval.high, n=interval.n, **more)


def distance_figures(real: np.ndarray, synthetic: np.ndarray, **more: Any) -> dict[str, Figure]:
    """FID, its extrapolation, KID, precision, recall, density and coverage of two sets of features.

    Args:
        real, synthetic: features (N, F), (M, F).
        more: what every figure states too, ``seed`` among it.
    """
    seed, counts = more["seed"], {"n": len(synthetic), "n_real": len(real)}
    figures = {
        **_with_intervals(("fid",), _fid, _fid, real, synthetic, seed),
        "fid_infinity": _extrapolated(real, synthetic, seed),
        **_with_intervals(("kid",), lambda a, b: {"kid": kid(a, b, seed=seed)[0]}, _mmd, real, synthetic, seed),
        **_with_intervals(MANIFOLD, precision_recall_density_coverage, None, real, synthetic, seed),
    }
    return {name: {**entry, **counts, **more} for name, entry in figures.items()}


def floor_figures(real: np.ndarray, **more: Any) -> dict[str, Figure]:
    """What random halves of the real images score against one another: ``value`` and ``std``, over the splits.

    ``n`` images are in each half, for KID at most as many as in one of its subsets.
    """
    figures = {}
    tried: tuple[tuple[tuple[str, ...], Statistics, int | None], ...] = (
        (("fid",), _fid, None),
        (("kid",), _mmd, SUBSET_SIZE),
        (MANIFOLD, precision_recall_density_coverage, None),
    )
    for names, statistics, most in tried:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                floors = real_floors(statistics, real, seed=more["seed"], most=most)
            figures.update({k: figure(floor.mean, std=floor.std, n=floor.n, **more) for k, floor in floors.items()})
        except UserError as error:
            figures.update({name: absent(error, **more) for name in names})
    return figures


def energies(images: Images) -> list[float]:
    """High-frequency energy of each image (C, H, W, D)."""
    return [float(high_frequency_energy(images[n][None])) for n in range(len(images))]


def sharpness_figure(synthetic: Sequence[float] | np.ndarray, real: Sequence[float] | np.ndarray, seed: int) -> Figure:
    """Mean energy of synthetic images by that of real ones; the interval holds the chance in both sets."""
    if np.mean(real) <= 0:
        return absent("the real images have no fine detail at all")
    return of_interval(bootstrap_ratio(synthetic, real, seed=seed), seed=seed)


def _fid(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    return {"fid": fid(real, synthetic)}


def _mmd(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    """What KID averages over its subsets, of all images at once."""
    return {"kid": mmd_squared(real, synthetic)}


def _extrapolated(real: np.ndarray, synthetic: np.ndarray, seed: int) -> Figure:
    try:
        line = fid_infinity(real, synthetic, seed=seed)
    except UserError as error:
        return absent(error)
    entry = figure(line.value, residual=line.residual, sizes=list(line.sizes), fids=list(line.fids))
    if (smallest := min(line.sizes)) > real.shape[1]:
        return entry
    return _noted(
        entry,
        f"biased: its subsets hold {smallest} to {max(line.sizes)} images, and FID falls with 1/n only where they hold "
        f"more than the {real.shape[1]} features",
    )


def _with_intervals(
    names: tuple[str, ...],
    statistics: Statistics,
    spread: Statistics | None,
    real: np.ndarray,
    synthetic: np.ndarray,
    seed: int,
) -> dict[str, Figure]:
    """Figures with the intervals that subsets of ``spread``, or of themselves, tell, around their values.

    A note says why there are none.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = statistics(real, synthetic)
    except UserError as error:
        return {name: absent(error) for name in names}
    note = "; ".join(sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)}))
    entries = {name: _noted(figure(values[name]), note) for name in names}
    share = min(INTERVAL_SHARE, MOST_IN_SUBSET / max(len(real), len(synthetic)))
    fewest = round(share * min(len(real), len(synthetic)))
    if share < INTERVAL_SHARE and fewest < FEWEST_IN_SMALL_SHARE:
        why = f"no interval: a subset of {MOST_IN_SUBSET} images would hold {fewest} of the smaller set, too few"
        return {name: _noted(entry, why) for name, entry in entries.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = subsample_intervals(
                spread or statistics, real, synthetic, share, INTERVAL_REPEATS, seed=seed, values=values
            )
    except UserError as error:
        return {name: _noted(entry, f"no interval: {error}") for name, entry in entries.items()}
    for name, entry in entries.items():
        low, high = _within(name, found[name].low, found[name].high)
        entries[name] = {**entry, "low": low, "high": high}
    return entries


def _within(name: str, low: float, high: float) -> tuple[float, float]:
    """An interval that is moved or symmetric may leave the range that the figure can take."""
    if name not in MOST:
        return low, high
    return max(low, 0.0), min(high, MOST[name])


def _noted(entry: Figure, note: str) -> Figure:
    return {**entry, "note": "; ".join(filter(None, [entry.get("note"), note]))} if note else entry
