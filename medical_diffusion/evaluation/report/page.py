"""``report.html``: one file that opens offline; figures, pictures and verdict together on one screen of usual size."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from medical_diffusion.evaluation.report.notes import comparison, notes
from medical_diffusion.evaluation.report.tables import table

TITLE = "Evaluation of synthetic images"
STYLE = """body{font:14px/1.35 system-ui,sans-serif;margin:.8rem auto;max-width:1720px;padding:0 1rem;color:#222}
h1{font-size:1.35rem;margin:.2rem 0 .5rem}.grid{display:grid;gap:.4rem 1.4rem;align-items:start}
@media(min-width:1100px){.grid{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
td,th{border-bottom:1px solid #ddd;padding:.1rem .6rem;text-align:left}th{background:#f5f5f5}td:nth-child(2){color:#777}
figure{margin:.3rem 0}figcaption{font-weight:600;margin-bottom:.15rem}figcaption small{font-weight:400}small{color:#666}
img{max-width:100%;image-rendering:pixelated}.plot img{max-height:270px;
image-rendering:auto}ul{margin:.3rem 0;padding-left:1.1rem}
p{margin:.3rem 0;padding:.3rem .7rem}.warn{background:#fff4d6;border-left:4px solid #e0a800}
.verdict{background:#eef4fb;border-left:4px solid #3a78b5}"""


def page(report: Mapping[str, Any], pictures: Mapping[tuple[str, str], np.ndarray]) -> str:
    """The page: verdicts and warnings above, figures on the left, images on the right.

    Args:
        report: what ``report.json`` holds.
        pictures: RGB or grey bytes by kind (``real``, ``features``, ``diversity``; ``samples``, ``nearest`` and
            ``nearest_features`` with the name of a generator).
    """
    verdicts = (_paragraph("verdict", g["verdict"], f"{name}. ") for name, g in report["generators"].items())
    warnings = (_paragraph("warn", warning) for warning in report["warnings"])
    overlap = "Features on the first two principal axes of the real images"
    diversity = "Diversity: similarity of pairs; the nearer to real the better"
    figures = [
        _table(report),
        _figure(overlap, pictures["features", ""], "plot"),
        _figure(diversity, pictures["diversity", ""], "plot"),
        _notes(report),
    ]
    images = [_figure("Real images", pictures["real", ""]), *_images_of_generators(report, pictures)]
    columns = f"<div>{''.join(figures)}</div><div>{''.join(images)}</div>"
    head = f'<meta charset="utf-8"><title>{TITLE}</title><style>{STYLE}</style>'
    body = f'<h1>{TITLE}</h1>{"".join(verdicts)}{"".join(warnings)}<div class="grid">{columns}</div>'
    return f'<!doctype html><html lang="en">{head}{body}<small>Protocol {report["protocol_hash"]}</small></html>\n'


def _images_of_generators(report: Mapping[str, Any], pictures: Mapping[tuple[str, str], np.ndarray]) -> Iterator[str]:
    for name, generator in report["generators"].items():
        yield _figure(f"Samples of {name}", pictures["samples", name])
        if ("nearest", name) in pictures:
            caption = f"Nearest training images of {name}: samples above, turned onto the training image below"
            scores = ", ".join(_score(pair) for pair in generator["nearest"])
            yield _figure(caption, pictures["nearest", name], small=f"Scores: {scores}")
        if ("nearest_features", name) in pictures:
            caption = f"Nearest training images of {name} by features: samples above, turned onto those below"
            yield _figure(caption, pictures["nearest_features", name])


def _paragraph(kind: str, text: str, strong: str = "") -> str:
    return f'<p class="{kind}">{f"<b>{escape(strong)}</b>" if strong else ""}{escape(text)}</p>'


def _table(report: Mapping[str, Any]) -> str:
    rows = table(report)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _notes(report: Mapping[str, Any]) -> str:
    told = [*notes(report), *(comparison(entry) for entry in report["comparisons"])]
    return "<ul>" + "".join(f"<li><small>{escape(note)}</small></li>" for note in told) + "</ul>"


def _figure(caption: str, picture: np.ndarray, kind: str = "", small: str = "") -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    text, more = escape(caption), f"<br><small>{escape(small)}</small>" if small else ""
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f'<figure class="{kind}"><figcaption>{text}{more}</figcaption>{image}</figure>'


def _score(pair: Mapping[str, Any]) -> str:
    relation = "copy of" if pair["copy"] else "beside"
    return f"{pair['sample_name']} {pair['score']:.3g} ({relation} {pair['training_name']})"
