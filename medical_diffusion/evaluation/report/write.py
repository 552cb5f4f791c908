"""The files of a report: ``report.json``, ``report.md``, CSV tables, PNGs, and ``report.html`` in one file."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medical_diffusion.evaluation.report.drawings import feature_overlap, feature_pairs, intervals, pairs, sheet
from medical_diffusion.evaluation.report.measure import Measurement, ReportImages
from medical_diffusion.evaluation.report.nearness import nearness_note
from medical_diffusion.files import check_writable, write_json, write_text
from medical_diffusion.pictures import write_png

ORDER = (
    "fid",
    "fid_infinity",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "ms_ssim_synthetic",
    "ms_ssim_real",
    "ms_ssim_gap",
    "high_frequency_ratio",
    "auroc_synthetic",
    "auroc_real",
    "feature_copy_ratio",
    "copy_rate",
)
STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:1080px;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{border-bottom:1px solid #ddd;padding:.2rem .7rem;
text-align:left}th{background:#f5f5f5}small{color:#666}img{max-width:100%;image-rendering:pixelated}.bad{color:#b00020;
font-weight:600}.warn{background:#fff4d6;padding:.4rem .8rem;border-left:4px solid #e0a800}
.verdict{background:#eef4fb;padding:.4rem .8rem;border-left:4px solid #3a78b5}"""


def write_report(
    output: str | Path,
    measurement: Measurement,
    real: ReportImages,
    generators: Mapping[str, ReportImages],
    train: ReportImages | None = None,
) -> Path:
    """Write all files of a report; returns the path of ``report.html``.

    Args:
        output: folder.
        measurement: of :func:`~medical_diffusion.evaluation.report.measure.measure`.
        real, generators, train: as there, for pictures.

    Raises:
        UserError: the folder can not be written to.
    """
    folder, report = check_writable(output), measurement.report
    seed = report["protocol"]["seed"]
    pictures = {"real": sheet(real, seed)}
    for name, images in generators.items():
        pictures[f"samples_{name}"] = sheet(images, seed)
        if train is not None and name in measurement.copies:
            picture, listed = pairs(images, train, measurement.copies[name])
            pictures[f"nearest_{name}"] = picture
            report["generators"][name]["nearest"] = listed
        if train is not None and (near := report["generators"][name]["nearest_in_features"]):
            pictures[f"nearest_features_{name}"] = feature_pairs(images, train, near)
    pictures["features"] = feature_overlap(measurement.features)
    diversity = {name: g["figures"]["ms_ssim_synthetic"] for name, g in report["generators"].items()}
    pictures["diversity"] = intervals({"real": report["ms_ssim_real"], **diversity}, "MS-SSIM of pairs")
    for name, picture in pictures.items():
        write_png(folder / f"{_file_name(name)}.png", picture)
    write_json(folder / "report.json", report)
    write_text(folder / "figures.csv", _csv(report))
    if report["comparisons"]:
        write_text(folder / "comparisons.csv", _comparisons_csv(report["comparisons"]))
    write_text(folder / "report.md", _markdown(report))
    return write_text(folder / "report.html", _html(report, pictures))


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the metric table: name, one column a generator, the floor of real against real."""
    generators = report["generators"]
    rows = [["metric", *generators, "real against real"]]
    names = [*ORDER, *sorted({n for g in generators.values() for n in g["figures"]} - set(ORDER))]
    for name in names:
        cells = [g["figures"][name] for g in generators.values() if name in g["figures"]]
        if len(cells) != len(generators):
            continue
        floor = report["floor"].get(name) or (report["ms_ssim_real"] if name == "ms_ssim_synthetic" else None)
        floor = report["utility"]["auroc_real"] if name == "auroc_synthetic" else floor
        rows.append([name, *map(shown, cells), shown(floor) if floor else ""])
    return rows


def shown(entry: Mapping[str, Any]) -> str:
    """A figure as text, with its interval."""
    if entry["value"] is None:
        return f"none: {entry.get('reason', 'not finite')}"
    ends = (entry.get("low"), entry.get("high"))
    return f"{entry['value']:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if None not in ends else "")


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences that a reader must know beside the table."""
    extractor = report["protocol"]["extractor"]
    found = [f"Real images: {report['real']['images']}; {report['real']['relation']}."]
    name = extractor.get("name") or extractor.get("extractor") or "given"
    found.append(f"Features: {name}; FID and KID are comparable within reports of the same protocol hash only.")
    if str(name) == "random":
        found.append(
            "The extractor is an untrained network of fixed seed: its FID is not the published Inception FID and can "
            "not be held against figures in papers."
        )
    for key in ("unreadable", "constant"):
        for where, files in report.get(key, {}).items():
            if files:
                found.append(f"{len(files)} {key} files in {where}: {', '.join(files[:5])}.")
    found.append(utility_note(report["utility"]))
    found += _figure_notes(report["generators"])
    memory = report.get("memorisation", {})
    if "threshold" in memory:
        alarms = memory["false_alarms"]
        found.append(
            f"Copies: threshold {memory['threshold']:.4g} from {memory['strangers']}; false alarms "
            f"{100 * alarms['value']:.2f} % of {alarms['n']} (95 % interval {100 * alarms['low']:.2f} to "
            f"{100 * alarms['high']:.2f} %); {100 * memory['sensitivity_to_planted_copies']:.0f} % of planted copies "
            f"found, AUROC {memory['auroc_planted_copies']:.4f}."
        )
    for name, generator in report["generators"].items():
        if (entry := generator["figures"]["feature_copy_ratio"])["value"] is not None:
            found.append(nearness_note(name, entry))
    return found


def _figure_notes(generators: Mapping[str, Any]) -> list[str]:
    """Notes of single figures, each once, with the figures that it belongs to."""
    figures_of: dict[str, list[str]] = {}
    for generator in generators.values():
        for name, entry in generator["figures"].items():
            if "note" in entry and name not in figures_of.setdefault(entry["note"], []):
                figures_of[entry["note"]].append(name)
    return [f"{', '.join(names)}: {note}." for note, names in figures_of.items()]


def utility_note(utility: Mapping[str, Any]) -> str:
    """What the utility test was, or why there is none."""
    if "reason" in utility:
        return f"Utility was not measured: {utility['reason']}."
    size = " x ".join(map(str, utility["size"]))
    return (
        f"Utility: AUROC of classifiers of {', '.join(utility['classes'])} on {utility['n_test']} real images that are "
        f"no training images, after {utility['steps']} steps on {utility['n_train']} images of each set, at {size}."
    )


def _markdown(report: Mapping[str, Any]) -> str:
    rows = table(report)
    lines = ["# Evaluation of synthetic images", ""]
    lines += [f"**{name}.** {g['verdict']}\n" for name, g in report["generators"].items()]
    lines += [f"> {warning}\n" for warning in report["warnings"]]
    lines += ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    lines += ["", *[f"- {note}" for note in notes(report)]]
    for entry in report["comparisons"]:
        lines.append(f"- {comparison(entry)}")
    return "\n".join([*lines, "", f"Protocol {report['protocol_hash'][:16]}", ""])


def comparison(entry: Mapping[str, Any]) -> str:
    """The p-values of two generators as a sentence."""
    first, second = entry["generators"]
    values = [
        f"{name} p = {entry[f'p_{key}']:.3g} ({' and '.join(map(str, entry[f'n_{key}']))} samples)"
        if entry[f"p_{key}"] is not None
        else f"{name}: {entry['reason']}"
        for name, key in (("FID", "fid"), ("KID", "kid"))
    ]
    several = f" One of {entry['tests']} pairs; p is not corrected for that." if entry["tests"] > 1 else ""
    return f"Do {first} and {second} differ? Permutation test of {', '.join(values)}.{several}"


def _csv(report: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    columns = ("value", "low", "high", "n", "seed", "extractor", "reason")
    writer.writerow(["set", "metric", *columns, "protocol_hash"])
    sets = {name: g["figures"] for name, g in report["generators"].items()}
    for name, figures in {**sets, "real against real": report["floor"]}.items():
        for metric, entry in figures.items():
            writer.writerow([name, metric, *[entry.get(c, "") for c in columns], report["protocol_hash"]])
    return stream.getvalue()


def _comparisons_csv(comparisons: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["first", "second", "metric", "p", "samples_first", "samples_second", "seed"])
    for entry in comparisons:
        for key in ("fid", "kid"):
            writer.writerow([*entry["generators"], key, entry[f"p_{key}"], *entry[f"n_{key}"], entry["seed"]])
    return stream.getvalue()


def _html(report: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> str:
    rows = table(report)
    body = ["<h1>Evaluation of synthetic images</h1>"]
    for name, generator in report["generators"].items():
        body.append(f'<p class="verdict"><b>{escape(name)}.</b> {escape(generator["verdict"])}</p>')
    body += [f'<p class="warn">{escape(warning)}</p>' for warning in report["warnings"]]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    body.append(f"<table><tr>{head}</tr>{lines}</table>")
    told = [*notes(report), *(comparison(entry) for entry in report["comparisons"])]
    body.append("<ul>" + "".join(f"<li><small>{escape(note)}</small></li>" for note in told) + "</ul>")
    body.append(_image("Real images", pictures["real"]))
    for name in report["generators"]:
        body.append(_image(f"Samples of {name}", pictures[f"samples_{name}"]))
    body.append(_image("Features on the first two principal axes of the real images", pictures["features"]))
    body.append(_image("Diversity: similarity of pairs; the nearer to real the better", pictures["diversity"]))
    for name, generator in report["generators"].items():
        if f"nearest_{name}" in pictures:
            scores = ", ".join(f"{p['score']:.3g}{' (copy)' if p['copy'] else ''}" for p in generator["nearest"])
            caption = f"Nearest training images of {name}: samples above, turned onto the training image below"
            body.append(_image(f"{caption}. Scores: {scores}", pictures[f"nearest_{name}"]))
        if f"nearest_features_{name}" in pictures:
            caption = f"Nearest training images of {name} by features: samples above, training images below"
            body.append(_image(caption, pictures[f"nearest_features_{name}"]))
    body.append(f"<p><small>Protocol {report['protocol_hash']}</small></p>")
    title = "<title>Evaluation of synthetic images</title>"
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>{"".join(body)}</html>\n'


def _image(caption: str, picture: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<h2>{escape(caption)}</h2><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
