"""Runs a label-efficiency study and writes its tables and figures.

Every run is a folder of its own, so an interrupted study continues: finished runs are skipped, an unfinished one goes
on from its checkpoint. A run that fails stops the study, because its cause (data, memory, disk) would meet the next
runs too, and a table with holes is read as a whole one; what is finished is kept and tabulated, and the same command
goes on with the run that failed.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from medical_diffusion.errors import UserError
from medical_diffusion.files import check_writable
from medical_diffusion.pictures import write_png
from medical_diffusion.studies.label_efficiency.figure import draw_figure
from medical_diffusion.studies.label_efficiency.overlay import draw_overlays
from medical_diffusion.studies.label_efficiency.plan import Cell, Plan, parse_arms
from medical_diffusion.studies.label_efficiency.record import StudyRecord
from medical_diffusion.studies.label_efficiency.results import (
    Reports,
    Summary,
    check_comparable,
    check_test_part,
    compare_pretrained,
    subject_dice,
    summarise,
    training_subjects,
)
from medical_diffusion.studies.label_efficiency.runner import BundleRunner, CellRunner
from medical_diffusion.studies.label_efficiency.tables import write_markdown, write_run_table, write_summary

logger = logging.getLogger(__name__)

FRACTIONS = (5.0, 10.0, 20.0, 40.0, 80.0, 100.0)
"""Percent of the labelled subjects, those of Medical Diffusion."""
REPEATS = 3
DISPOSABLE, WEIGHTS = ("cache", "data"), "models"
"""Folders of a run: preprocessed volumes, phantoms; and its weights."""


def run_label_efficiency_study(
    bundle: str | Path,
    output_dir: str | Path,
    pretrained: Sequence[str] = (),
    fractions: Sequence[float] = FRACTIONS,
    repeats: int = REPEATS,
    shard: tuple[int, int] = (1, 1),
    dataset_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    keep_weights: bool = False,
    runner: CellRunner | None = None,
) -> Path:
    """Fine-tune every arm on every share of the labels and compare them.

    Args:
        bundle: folder of the fine-tuning bundle.
        output_dir: folder of the study; each run lies in ``runs/<arm>/<fraction>_percent/repeat_<r>``.
        pretrained: the arms besides ``none``, each ``[NAME=]PATH`` of pre-trained weights.
        fractions: percent of the labelled training subjects, in (0, 100].
        repeats: seeds at each arm and fraction, at least 1.
        shard: part i of n, to be run by this process; the parts may run at the same time on one folder.
        dataset_dir: labelled data; phantoms without it.
        options: options of the bundle for all runs, such as ``steps``.
        keep_weights: leave the weights of finished runs, which are as many times large as there are runs.
        runner: trains and evaluates; by default the bundle.

    Returns:
        path of ``table.md``; beside it ``table.csv`` (every run), ``summary.csv``, ``figure.png``, ``overlay.png``
        and ``study.json``.

    Raises:
        UserError: what :func:`parse_arms`, :class:`Plan`, :class:`StudyRecord` and the runs refuse.
    """
    plan = Plan.of(parse_arms(pretrained), fractions, repeats)
    runner = runner or BundleRunner(bundle)
    output = Path(output_dir).expanduser()
    record = StudyRecord(output, plan, bundle, options or {}, dataset_dir)
    check_writable(output)
    record.begin()
    mine = plan.shard(*shard)
    missing = [cell for cell in mine if not record.is_finished(cell)]
    logger.info(
        "%d arms x %d fractions x %d repeats: %d runs%s, %d finished before",
        *(len(plan.arms), len(plan.fractions), plan.repeats, len(plan.cells)),
        "" if shard == (1, 1) else f", {len(mine)} of them in shard {shard[0]}/{shard[1]}",
        len(mine) - len(missing),
    )
    if missing:
        _check(runner, record, plan)
    try:
        _run(runner, record, missing, keep_weights)
    except BaseException:
        with suppress(UserError):  # what stopped the study is what is told
            write_results(record)
        raise
    return write_results(record)


def write_results(record: StudyRecord) -> Path:
    """Tables and figures from all runs that are finished, whichever shard ran them; returns the path of ``table.md``.

    Raises:
        UserError: runs that can not be compared.
    """
    output, plan, reports = record.folder, record.plan, record.reports()
    table, summaries = _write_tables(record, reports)
    if summaries:
        missing = len(plan.cells) - len(reports)
        note = f"{missing} of {len(plan.cells)} runs are missing" if missing else ""
        write_png(output / "figure.png", draw_figure(plan, summaries, note))
    overlays = draw_overlays(output, plan, reports)
    if overlays is not None:
        write_png(output / "overlay.png", overlays)
    if len(reports) == len(plan.cells):  # no shard needs it any more
        shutil.rmtree(record.cache, ignore_errors=True)
    logger.info("%d of %d runs are finished: %s", len(reports), len(plan.cells), table)
    return table


def _write_tables(record: StudyRecord, reports: Reports) -> tuple[Path, list[Summary]]:
    """All but the figures; returns the path of ``table.md`` and its rows."""
    output, plan = record.folder, record.plan
    check_comparable(reports)
    summaries = summarise(plan, reports)
    first = next(iter(reports.values()), None)
    record.add(
        finished=len(reports),
        runs=len(plan.cells),
        test_subjects=list(subject_dice(first["report"])) if first else [],
        training_subjects=training_subjects(reports),
    )
    write_run_table(output / "table.csv", plan, reports)
    write_summary(output / "summary.csv", summaries)
    comparisons = compare_pretrained(plan, reports)
    table = write_markdown(output / "table.md", plan, summaries, comparisons, len(reports), record.stated_options)
    return table, summaries


def _check(runner: CellRunner, record: StudyRecord, plan: Plan) -> None:
    """Each arm and each repeat at the fewest labels, before hours of training, whichever shard runs them: weights that
    do not fit, a share without a subject."""
    unfinished = [cell for cell in plan.cells if not record.is_finished(cell)]
    firsts = {cell.arm: cell for cell in reversed(unfinished)}
    seeds = {cell.repeat: cell for cell in reversed(unfinished)}
    arms = [firsts[arm.name] for arm in plan.arms if arm.name in firsts]
    for cell in dict.fromkeys([*arms, *(seeds[repeat] for repeat in sorted(seeds))]):
        with _naming(cell, "No run was begun"):
            record.check_weights(cell)
            runner.check(record.options_of(cell))


def _run(runner: CellRunner, record: StudyRecord, missing: Sequence[Cell], keep_weights: bool) -> None:
    """The bar counts the runs of all shards."""
    total = len(record.plan.cells)
    bar = tqdm(total=total, initial=len(record.reports()), desc="study", unit="run", dynamic_ncols=True)
    with bar, logging_redirect_tqdm():
        for cell in missing:
            started = time.monotonic()
            with _naming(cell, "Finished runs are kept; the same command goes on with this one"):
                record.check_weights(cell)
                report = runner.run(record.options_of(cell))
                check_test_part(report)
                check_comparable({**record.reports(), cell: {"report": report}})
            seconds = time.monotonic() - started
            record.finish(cell, report, seconds)
            _tidy(record.folder / cell.folder, keep_weights)
            reports = record.reports()
            _write_tables(record, reports)
            bar.update(len(reports) - bar.n)
            logger.info(
                "%s (%s training subjects): Dice %s on %s test subjects, %.0f s",
                *(cell, report["training_subjects"], _three(report["mean_dice"]["value"]), report["subjects"], seconds),
            )


@contextmanager
def _naming(cell: Cell, consequence: str) -> Iterator[None]:
    """Says which run an error comes from, and what that means for the others."""
    try:
        yield
    except UserError as error:
        remedy = ". ".join(part.rstrip(".") for part in (error.remedy, consequence) if part)
        raise UserError(f"{error.rule} (run: {cell})", error.received, remedy) from error
    except Exception:
        logger.error("Failed: %s. %s.", cell, consequence)
        raise


def _tidy(folder: Path, keep_weights: bool) -> None:
    """A finished run keeps its reports and logs; the rest is large, and there are as many as runs."""
    for name in (*DISPOSABLE, *(() if keep_weights else (WEIGHTS,))):
        shutil.rmtree(folder / name, ignore_errors=True)


def _three(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
