"""Figures of a study from the reports of its runs.

The unit is the test subject. Its Dice is the mean over the classes for which Dice is defined, and, at one arm and
fraction, over the finished repeats; subjects are then drawn with replacement, 1000 times. The interval so tells what
other test subjects would change; what other training subsets and seeds would change is told by the standard deviation
over repeats. Differences to ``none`` are paired: the same test subjects, the same subsets of labels, and only those
repeats that are finished in both arms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import (
    Interval,
    bootstrap_deviation,
    bootstrap_difference,
    bootstrap_interval,
)
from medical_diffusion.studies.label_efficiency.plan import NO_PRETRAINING, Cell, Plan

Reports = Mapping[Cell, Mapping[str, Any]]
CHANGED = "The data have changed since the study began: begin a new one in another folder"


@dataclass(frozen=True)
class Summary:
    """One arm at one fraction.

    Attributes:
        arm, fraction: which.
        training_subjects: labelled subjects trained on.
        repeats: finished ones.
        dice: mean over test subjects with its 95 % interval.
        deviation: of the bootstrap, the paper's error bar.
        between_repeats: standard deviation of the repeats' means, NaN for one.
        difference: to no pre-training, paired; None for ``none`` itself and where no repeat is finished in both.
    """

    arm: str
    fraction: float
    training_subjects: int
    repeats: int
    dice: Interval
    deviation: float
    between_repeats: float
    difference: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Dice of the ``first`` arm less that of the ``second`` at one fraction, paired."""

    fraction: float
    first: str
    second: str
    difference: Interval


def summarise(plan: Plan, reports: Reports) -> list[Summary]:
    """Every arm and fraction that has a finished run, by fraction and then by arm.

    Args:
        plan: the study.
        reports: contents of ``cell.json`` by run, comparable ones.
    """
    dice = {cell: subject_dice(content["report"]) for cell, content in reports.items()}
    rows = []
    for fraction in plan.fractions:
        for arm in plan.arms:
            cells = [c for c in plan.cells if c in dice and (c.arm, c.fraction) == (arm.name, fraction)]
            if not cells:
                continue
            table = _table(dice, cells)
            subjects = _over_repeats(table)
            subjects = subjects[np.isfinite(subjects)]
            repeats = np.array([_mean(row) for row in table])
            rows.append(
                Summary(
                    arm=arm.name,
                    fraction=fraction,
                    training_subjects=int(reports[cells[0]]["report"]["training_subjects"]),
                    repeats=len(cells),
                    dice=bootstrap_interval(subjects),
                    deviation=bootstrap_deviation(subjects),
                    between_repeats=float(repeats.std(ddof=1)) if len(cells) > 1 else math.nan,
                    difference=None if arm.name == NO_PRETRAINING else _difference(dice, cells, NO_PRETRAINING),
                )
            )
    return rows


def compare_pretrained(plan: Plan, reports: Reports) -> list[Comparison]:
    """Every pair of pre-trained arms at every fraction where a repeat is finished in both.

    Args:
        plan: the study.
        reports: contents of ``cell.json`` by run.
    """
    dice = {cell: subject_dice(content["report"]) for cell, content in reports.items()}
    names = [arm.name for arm in plan.arms if arm.name != NO_PRETRAINING]
    found = []
    for fraction in plan.fractions:
        for first, second in itertools.combinations(names, 2):
            cells = [c for c in plan.cells if c in dice and (c.arm, c.fraction) == (first, fraction)]
            difference = _difference(dice, cells, second)
            if difference is not None:
                found.append(Comparison(fraction, first, second, difference))
    return found


def subject_dice(report: Mapping[str, Any]) -> dict[str, float]:
    """Mean Dice over classes of each test subject, over its images where it has several.

    NaN for a subject in which no class has a Dice, such as one without any foreground.
    """
    values: dict[str, list[float]] = {}
    for case in report["cases"]:
        defined = [float(v) for v in case["dice"].values() if v is not None and math.isfinite(v)]
        values.setdefault(str(case["subject"]), []).append(float(np.mean(defined)) if defined else math.nan)
    return {subject: _mean(np.array(scores)) for subject, scores in sorted(values.items())}


def check_comparable(reports: Reports) -> None:
    """Whether all runs saw the same data: labels, test subjects and, at each share and repeat, training subjects.

    Raises:
        UserError: they did not.
    """
    first: Cell | None = None
    for cell, content in reports.items():
        first = first or cell
        report, other = content["report"], reports[first]["report"]
        odd = {str(case["subject"]) for case in report["cases"]} ^ {str(case["subject"]) for case in other["cases"]}
        if odd:
            raise UserError(
                "all runs of a study must be evaluated on the same test subjects",
                f"{cell} and {first} differ in {', '.join(sorted(odd)[:5])}",
                CHANGED,
            )
        if report.get("data") != other.get("data"):
            raise UserError("all runs of a study must see the same labels", f"{cell} and {first} differ", CHANGED)
        twin = reports.get(Cell(cell.repeat, cell.fraction, NO_PRETRAINING))
        if twin is not None and twin["report"].get("training_ids") != report.get("training_ids"):
            raise UserError("all arms of a repeat must be trained on the same subjects", str(cell), CHANGED)


def check_test_part(report: Mapping[str, Any]) -> None:
    """Whether a run was evaluated on subjects that neither trained nor chose its weights.

    Raises:
        UserError: it was not.
    """
    if report.get("split") != "test":
        raise UserError(
            "runs of a study must be evaluated on a test part",
            f"{report.get('subjects')} {report.get('split')} subjects, which chose the weights",
            "Label ten subjects or more and leave --test_fraction above 0, or state a test part in a list",
        )


def training_subjects(reports: Reports) -> dict[str, dict[str, list[str]]]:
    """Ids of the labelled subjects by fraction and repeat."""
    subsets: dict[str, dict[str, list[str]]] = {}
    for cell, content in sorted(reports.items()):
        ids = content["report"].get("training_ids")
        if ids is not None:
            subsets.setdefault(f"{cell.fraction:g}", {})[str(cell.repeat)] = sorted(ids)
    return subsets


def _difference(dice: Mapping[Cell, Mapping[str, float]], cells: Sequence[Cell], other: str) -> Interval | None:
    both = [(c, Cell(c.repeat, c.fraction, other)) for c in cells]
    both = [pair for pair in both if pair[1] in dice]
    if not both:
        return None
    values, baseline = (_over_repeats(_table(dice, [pair[side] for pair in both])) for side in (0, 1))
    defined = np.isfinite(values) & np.isfinite(baseline)
    # subjects in which one of the two has no Dice compare nothing
    return bootstrap_difference(values[defined], baseline[defined])


def _table(dice: Mapping[Cell, Mapping[str, float]], cells: Sequence[Cell]) -> np.ndarray:
    """Dice (repeats, subjects) in one order of subjects."""
    return np.array([list(dice[cell].values()) for cell in cells])


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _over_repeats(table: np.ndarray) -> np.ndarray:
    """Mean over the repeats of each subject, NaN for one without a Dice in any of them."""
    return np.array([_mean(column) for column in table.T])
