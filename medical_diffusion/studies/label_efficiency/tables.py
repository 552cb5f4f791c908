"""Tables of a study: every run, the summary, and the summary to read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion.evaluation.bootstrap import RESAMPLES, Interval
from medical_diffusion.files import write_text
from medical_diffusion.studies.label_efficiency.plan import NO_PRETRAINING, Plan
from medical_diffusion.studies.label_efficiency.results import Comparison, Reports, Summary

FIGURES = ("dice", "hausdorff95_mm", "surface_distance_mm")
SUMMARY_COLUMNS = (
    *("fraction", "arm", "training_subjects", "repeats", "test_subjects", "dice", "low", "high", "bootstrap_sd"),
    *("sd_over_repeats", "difference", "difference_low", "difference_high"),
)
MARK = "\u00b7"
"""Behind a difference whose interval holds 0."""


def write_run_table(path: Path, plan: Plan, reports: Reports) -> Path:
    """One line per finished run, with the figures of each class, as CSV."""
    classes = sorted({name for content in reports.values() for name in content["report"]["classes"]})
    columns = [f"{name}_{figure}" for name in classes for figure in FIGURES]
    header = ["arm", "fraction", "repeat", "training_subjects", "test_subjects", "mean_dice", "low", "high"]
    rows = []
    for cell in plan.cells:
        if cell not in reports:
            continue
        content = reports[cell]
        report = content["report"]
        mean = report["mean_dice"]
        figures = [_figure(report["classes"].get(n, {}).get(f)) for n in classes for f in FIGURES]
        start = [cell.arm, f"{cell.fraction:g}", cell.repeat, report["training_subjects"], report["subjects"]]
        rows.append([*start, *(_number(mean[k]) for k in ("value", "low", "high")), *figures, content["seconds"]])
    return _write_csv(path, [*header, *columns, "seconds"], rows)


def write_summary(path: Path, summaries: Sequence[Summary]) -> Path:
    """One line per fraction and arm as CSV."""
    return _write_csv(path, SUMMARY_COLUMNS, [_summary_row(s) for s in summaries])


def write_markdown(
    path: Path,
    plan: Plan,
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison],
    finished: int,
    options: Mapping[str, str],
) -> Path:
    """The summary to read, with what its figures mean, the options, and how many of the runs it stands on."""
    header = ["labels", "subjects", "arm", "repeats", "Dice [95 %]", "SD", "SD of repeats", "difference to none [95 %]"]
    rows: list[list[object]] = []
    for s in summaries:
        difference = "" if s.difference is None else _signed(s.difference)
        if s.arm != NO_PRETRAINING and s.difference is None:
            difference = "no common repeat yet"
        deviations = ["" if math.isnan(d) else f"{d:.3f}" for d in (s.deviation, s.between_repeats)]
        start = [f"{s.fraction:g} %", s.training_subjects, s.arm, s.repeats]
        rows.append([*start, str(s.dice), *deviations, difference])
    counts = sorted({s.dice.n for s in summaries})
    subjects = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "no"
    state = "" if finished == len(plan.cells) else "; the others are missing here"
    stated = " ".join(f"--{name} {value}" for name, value in options.items())
    text = f"""# Label efficiency: Dice of fine-tuning by pre-training and share of labels

{finished} of {len(plan.cells)} runs are finished{state}. Options of all runs: `{stated}`.

{_markdown(header, rows)}

- Dice: mean over {subjects} test subjects, the same for every run. A subject's Dice is the mean over classes and over
  the finished repeats; the interval is that of {RESAMPLES} bootstrap resamples of the subjects, SD their standard
  deviation. Both tell what other test subjects would change, not what other training subjects would.
- SD of repeats: between the means of the repeats, each with its own subset of labels and its own seed.
- Difference: paired over subjects, on the same subsets; {MARK} marks an interval that holds 0, which shows no
  difference. There is no correction for several comparisons.
"""
    if comparisons:
        columns = ["labels", "arms", "difference [95 %]"]
        pairs = [[f"{c.fraction:g} %", f"{c.first} less {c.second}", _signed(c.difference)] for c in comparisons]
        text += f"\nBetween pre-trained arms, paired likewise:\n\n{_markdown(columns, pairs)}\n"
    return write_text(path, text)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    table: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in table)


def _summary_row(s: Summary) -> list[Any]:
    d = s.difference or Interval(math.nan, math.nan, math.nan, 0)
    figures = [s.dice.value, s.dice.low, s.dice.high, s.deviation, s.between_repeats, d.value, d.low, d.high]
    start = [f"{s.fraction:g}", s.arm, s.training_subjects, s.repeats, s.dice.n]
    return [*start, *map(_number, figures)]


def _signed(difference: Interval) -> str:
    if math.isnan(difference.low):
        return f"{difference.value:+.3f}"
    mark = f" {MARK}" if difference.low <= 0 <= difference.high else ""
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{mark}"


def _figure(interval: Mapping[str, Any] | None) -> str:
    return "" if interval is None else _number(interval["value"])


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    return write_text(path, table.getvalue())
