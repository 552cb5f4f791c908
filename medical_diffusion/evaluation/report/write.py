"""The files of a report: ``report.json``, ``report.md``, CSV tables, PNGs, and ``report.html``.

``report.json`` lists them, so that the next report in the same folder removes those that it does not write itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion.evaluation.report.drawings import feature_overlap, feature_pairs, intervals, pairs, sheet
from medical_diffusion.evaluation.report.measure import Measurement, ReportImages
from medical_diffusion.evaluation.report.notes import comparison, notes
from medical_diffusion.evaluation.report.page import page
from medical_diffusion.evaluation.report.tables import comparisons_csv, copies_csv, figures_csv, table
from medical_diffusion.files import check_writable, write_json, write_text
from medical_diffusion.pictures import write_png

RECORD, PAGE = "report.json", "report.html"


def write_report(
    output: str | Path,
    measurement: Measurement,
    real: ReportImages,
    generators: Mapping[str, ReportImages],
    train: ReportImages | None = None,
) -> Path:
    """Write all files of a report, remove those of an earlier one; returns the path of ``report.html``.

    Args:
        output: folder.
        measurement: of :func:`~medical_diffusion.evaluation.report.measure.measure`.
        real, generators, train: as there, for pictures.

    Raises:
        UserError: the folder can not be written to.
    """
    folder, report = check_writable(output), measurement.report
    seed = report["protocol"]["seed"]
    sample_names = {name: _names(images) for name, images in generators.items()}
    training_names = _names(train) if train is not None else []
    pictures = {("real", ""): sheet(real, seed)}
    for name, images in generators.items():
        pictures["samples", name] = sheet(images, seed)
        entry, names = report["generators"][name], (sample_names[name], training_names)
        if train is not None and name in measurement.copies:
            pictures["nearest", name], listed = pairs(images, train, measurement.copies[name])
            entry["nearest"] = _named(listed, *names)
        if train is not None and entry["nearest_in_features"]:
            entry["nearest_in_features"] = near = _named(entry["nearest_in_features"], *names)
            pictures["nearest_features", name] = feature_pairs(images, train, near)
    pictures["features", ""] = feature_overlap(measurement.features)
    diversity = {name: g["figures"]["ms_ssim_synthetic"] for name, g in report["generators"].items()}
    pictures["diversity", ""] = intervals({"real": report["ms_ssim_real"], **diversity}, "MS-SSIM of pairs")
    drawn = {
        f"{file}.png": picture for file, picture in zip(_file_names(list(pictures)), pictures.values(), strict=True)
    }
    texts = {"figures.csv": figures_csv(report)}
    if report["comparisons"]:
        texts["comparisons.csv"] = comparisons_csv(report["comparisons"])
    if measurement.copies:
        texts["copies.csv"] = copies_csv(measurement.copies, sample_names, training_names)
    texts |= {"report.md": _markdown(report), PAGE: page(report, pictures)}
    before = _files_of_report(folder)
    report["files"] = sorted({RECORD, *drawn, *texts})
    for file, picture in drawn.items():
        write_png(folder / file, picture)
    for file, text in texts.items():
        write_text(folder / file, text)
    write_json(folder / RECORD, report)
    for file in before - set(report["files"]):
        (folder / file).unlink(missing_ok=True)
    return folder / PAGE


def _files_of_report(folder: Path) -> set[str]:
    """Names of the files in ``folder`` itself that an earlier report lists; none where it can not be read."""
    try:
        listed = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    return {name for name in names if Path(name).name == name and (folder / name).is_file()}


def _names(images: ReportImages) -> list[str]:
    """Of each image: its file where the set knows it, else its number."""
    names = getattr(images, "names", None)
    return [str(n) for n in range(len(images))] if names is None else list(names)


def _named(
    listed: Sequence[Mapping[str, Any]], samples: Sequence[str], training: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {**pair, "sample_name": samples[pair["sample"]], "training_name": training[pair["training_image"]]}
        for pair in listed
    ]


def _markdown(report: Mapping[str, Any]) -> str:
    rows = table(report)
    lines = ["# Evaluation of synthetic images", ""]
    lines += [f"**{name}.** {g['verdict']}\n" for name, g in report["generators"].items()]
    lines += [f"> {warning}\n" for warning in report["warnings"]]
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    lines += ["| " + " | ".join(row) + " |" for row in (escaped[0], ["---"] * len(rows[0]), *escaped[1:])]
    lines += ["", *[f"- {note}" for note in notes(report)]]
    for entry in report["comparisons"]:
        lines.append(f"- {comparison(entry)}")
    return "\n".join([*lines, "", f"Protocol {report['protocol_hash'][:16]}", ""])


def _file_names(pictures: Sequence[tuple[str, str]]) -> list[str]:
    """Names of files, without what a file system does not take, each once where it ignores case too."""
    found: dict[str, None] = {}
    for parts in pictures:
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in "_".join(filter(None, parts)))
        name, count = plain, 1
        while name.lower() in {taken.lower() for taken in found}:
            count += 1
            name = f"{plain}_{count}"
        found[name] = None
    return list(found)
