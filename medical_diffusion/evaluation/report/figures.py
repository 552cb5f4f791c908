"""One figure of a report: its value, its interval, and what it was computed from; or why there is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import Interval, bootstrap_interval
from medical_diffusion.evaluation.distances import fid, fid_infinity, kid, precision_recall_density_coverage
from medical_diffusion.evaluation.distances.kid import mmd_squared
from medical_diffusion.evaluation.features.extraction import Images
from medical_diffusion.evaluation.permutation import real_floor, subsample_interval
from medical_diffusion.evaluation.spectrum import high_frequency_energy

Figure = dict[str, Any]
Statistic = Callable[[np.ndarray, np.ndarray], float]

MANIFOLD = {"precision": 1.0, "recall": 1.0, "density": math.inf, "coverage": 1.0}
"""Names, with the largest value; the least is 0."""
INTERVAL_REPEATS = 30
MOST_IMAGES_WITH_INTERVAL = 2000
"""Above it thirty subsets take longer than the figure is worth."""


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
        "fid": _with_interval(fid, fid, real, synthetic, seed),
        "fid_infinity": _tried(lambda: fid_infinity(real, synthetic, seed=seed).value),
        "kid": _with_interval(lambda a, b: kid(a, b, seed=seed)[0], mmd_squared, real, synthetic, seed),
    }
    for name in MANIFOLD:
        statistic = _manifold(name)
        figures[name] = _within(_with_interval(statistic, statistic, real, synthetic, seed), MANIFOLD[name])
    return {name: {**entry, **counts, **more} for name, entry in figures.items()}


def floor_figures(real: np.ndarray, **more: Any) -> dict[str, Figure]:
    """What random halves of the real images score against one another; ``low`` and ``high`` are one deviation away."""
    figures = {}
    for name, statistic in {"fid": fid, "kid": mmd_squared, **{name: _manifold(name) for name in MANIFOLD}}.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                floor = real_floor(statistic, real, seed=more["seed"])
            entry = figure(floor.mean, floor.mean - floor.std, floor.mean + floor.std, n=floor.n, **more)
            figures[name] = _within(entry, MANIFOLD[name]) if name in MANIFOLD else entry
        except UserError as error:
            figures[name] = absent(error, **more)
    return figures


def energies(images: Images) -> np.ndarray:
    """High-frequency energy of each image (C, H, W, D), (N,)."""
    return np.array([float(high_frequency_energy(images[n][None])) for n in range(len(images))])


def sharpness_figure(synthetic: np.ndarray, real: np.ndarray, seed: int) -> Figure:
    """Mean energy of synthetic images by that of real ones; the interval is of the synthetic ones."""
    if real.mean() <= 0:
        return absent("the real images have no fine detail at all")
    return of_interval(bootstrap_interval(synthetic / real.mean(), seed=seed), seed=seed)


def _manifold(name: str) -> Statistic:
    return lambda a, b: precision_recall_density_coverage(a, b)[name]


def _tried(compute: Callable[[], float]) -> Figure:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = compute()
    except UserError as error:
        return absent(error)
    notes = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
    return _noted(figure(value), "; ".join(notes)) if notes else figure(value)


def _with_interval(
    statistic: Statistic, spread: Statistic, real: np.ndarray, synthetic: np.ndarray, seed: int
) -> Figure:
    """A figure with the interval that subsets of ``spread`` tell, moved to its value; a note says why there is none."""
    entry = _tried(lambda: statistic(real, synthetic))
    if entry["value"] is None:
        return entry
    if (most := max(len(real), len(synthetic))) > MOST_IMAGES_WITH_INTERVAL:
        return _noted(entry, f"no interval: its subsets are drawn up to {MOST_IMAGES_WITH_INTERVAL} images, not {most}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interval = subsample_interval(spread, real, synthetic, repeats=INTERVAL_REPEATS, seed=seed)
    except UserError as error:
        return _noted(entry, f"no interval: {error}")
    low, high = (entry["value"] + end - interval.value for end in (interval.low, interval.high))
    return {**entry, **{k: v for k, v in figure(0, low, high).items() if k != "value"}}


def _within(entry: Figure, most: float) -> Figure:
    """An interval that is moved or symmetric may leave the range that the figure can take."""
    ends = {end: entry[end] for end in ("low", "high") if entry[end] is not None}
    return {**entry, **{end: min(max(value, 0.0), most) for end, value in ends.items()}}


def _noted(entry: Figure, note: str) -> Figure:
    return {**entry, "note": "; ".join(filter(None, [entry.get("note"), note]))}
