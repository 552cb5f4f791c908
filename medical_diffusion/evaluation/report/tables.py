"""Tables of a report: figures, comparisons, and the nearest training image of every sample."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from medical_diffusion.evaluation.copy_rate import CopyRate

BETTER = {
    "fid": "lower",
    "fid_infinity": "lower",
    "kid": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "near 1",
    "coverage": "higher",
    "ms_ssim_synthetic": "as real",
    "ms_ssim_real": "",
    "ms_ssim_gap": "near 0",
    "high_frequency_ratio": "near 1",
    "auroc_synthetic": "higher",
    "auroc_real": "",
    "feature_copy_ratio": "near 1",
    "copy_rate": "lower",
}
"""The figures in their order, and which way is better: what a table says beside each name."""
OF_REAL_IMAGES = ("ms_ssim_real", "auroc_real")
"""Figures of the real images alone, not of halves of them: they stand once, in the last column."""
AXES = "HWD"
DIGITS = 3
MOST_DECIMALS = 4


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the metric table: name, what is better, one column a generator, the floor of real against real.

    A cell is empty where a generator has no such figure.
    """
    generators = report["generators"]
    half = report["floor"].get("fid", {}).get("n")
    rows = [
        ["metric", "better", *generators, "real against real" + (f" (halves of {half})" if half else "")],
        ["images", "", *(str(generator["images"]) for generator in generators.values()), ""],
    ]
    names = [*BETTER, *sorted({n for g in generators.values() for n in g["figures"]} - set(BETTER))]
    for name in names:
        found = [g["figures"].get(name) for g in generators.values()]
        known = [entry for entry in found if entry is not None]
        if not known:
            continue
        cells = [shown(entry) if entry is not None else "" for entry in found]
        floor = shown(report["floor"][name], half) if name in report["floor"] else ""
        if name in OF_REAL_IMAGES:
            cells, floor = [""] * len(found), f"{shown(known[0])} (not of halves)"
        rows.append([name, BETTER.get(name, ""), *cells, floor])
    return rows


def shown(entry: Mapping[str, Any], half: int | None = None) -> str:
    """A figure as text with its interval, one of the floor with its deviation and its halves where not ``half``.

    Three digits of the figure, its ends to the same decimal place, of which there are at most ``MOST_DECIMALS``.
    """
    value = entry["value"]
    if value is None:
        return f"none: {entry.get('reason', 'not finite')}"
    magnitude = math.floor(math.log10(abs(value))) if value else -MOST_DECIMALS
    decimals = min(max(DIGITS - 1 - magnitude, 0), MOST_DECIMALS)
    text = f"{value:.{decimals}f}"
    if "std" in entry:
        number = "" if entry["n"] == half else f" (halves of {entry['n']})"
        return f"{text} ± {entry['std']:.{decimals}f}{number}"
    ends = (entry.get("low"), entry.get("high"))
    return text + (f" [{ends[0]:.{decimals}f}, {ends[1]:.{decimals}f}]" if None not in ends else "")


def figures_csv(report: Mapping[str, Any]) -> str:
    """Every figure, a line each."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    columns = ("value", "low", "high", "std", "n", "seed", "extractor", "reason")
    writer.writerow(["set", "metric", *columns, "protocol_hash"])
    sets = {name: g["figures"] for name, g in report["generators"].items()}
    for name, figures in {**sets, "real against real": report["floor"]}.items():
        for metric, entry in figures.items():
            writer.writerow([name, metric, *[entry.get(c, "") for c in columns], report["protocol_hash"]])
    return stream.getvalue()


def comparisons_csv(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Every p-value, a line each."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["first", "second", "metric", "p", "samples_first", "samples_second", "seed"])
    for entry in comparisons:
        for key in ("fid", "kid"):
            writer.writerow([*entry["generators"], key, entry[f"p_{key}"], *entry[f"n_{key}"], entry["seed"]])
    return stream.getvalue()


def copies_csv(
    copies: Mapping[str, CopyRate], sample_names: Mapping[str, Sequence[str]], training_names: Sequence[str]
) -> str:
    """The nearest training image of every sample, those most like copies first.

    Args:
        copies: by generator.
        sample_names: of each generator's samples.
        training_names: of the training images.

    Returns:
        lines of names, score, correlation, the axes along which the sample is mirrored, its shift along H, W and D in
        voxels of the search, and 1 where it counts as a copy.
    """
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["generator", "sample", "training_image", "score", "correlation", "flips", "shift", "flagged"])
    for generator, found in copies.items():
        matches = found.matches
        for n in matches.scores.argsort(descending=True, stable=True).tolist():
            names = (sample_names[generator][n], training_names[int(matches.indices[n])])
            figures = (f"{float(matches.scores[n]):.6g}", f"{float(matches.correlations[n]):.6g}")
            flips = "".join(AXES[axis] for axis in matches.flips[n])
            shift = " ".join(map(str, matches.shifts[n]))
            writer.writerow([generator, *names, *figures, flips, shift, int(found.flagged[n])])
    return stream.getvalue()
