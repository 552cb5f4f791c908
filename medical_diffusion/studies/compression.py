"""Compression study: the autoencoder at several compressions on the same volumes, the paper's Figure 3 and its table.

Each arm is a run of the bundle's ``train_autoencoder.json`` in a folder of its own, so an interrupted study continues
and a finished arm is skipped. All arms share data, split, preprocessing, seed and number of steps.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.files import check_writable, write_text
from medical_diffusion.pictures import picture_of, planes, to_grey, volume_grid, write_png
from medical_diffusion.studies.workflows import open_workflow, plain_errors

logger = logging.getLogger(__name__)

PICTURED = 2
CLOSE_UP = 0.4
"""Share of a slice's width that the close-up shows."""
COLUMNS = ("psnr", "mse", "ms_ssim")


def run_compression_study(
    bundle: str | Path,
    output_dir: str | Path,
    compressions: Sequence[int] = (4, 8),
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Train an autoencoder per compression and write ``table.md``, ``table.csv`` and ``figure.png``.

    Args:
        bundle: folder of a bundle with ``configs/train_autoencoder.json``.
        output_dir: folder of the study; each arm's run lies in ``compression_<c>``.
        compressions: factors per axis, powers of two.
        options: options of the bundle for all arms, such as ``dataset_dir`` and ``autoencoder_steps``.

    Returns:
        path of the figure.

    Raises:
        UserError: fewer than two different compressions, or anything that training refuses.
    """
    if len(set(compressions)) < 2 or len(set(compressions)) != len(compressions):
        raise UserError("a compression study compares at least two different compressions", list(compressions))
    output = check_writable(output_dir)
    arms = {c: _run_arm(Path(bundle), output / f"compression_{c}", c, dict(options or {})) for c in compressions}
    _write_table(output, {c: report for c, (report, _, _) in arms.items()})
    first = next(iter(arms.values()))
    figure = _figure(first[1], {c: volumes for c, (_, _, volumes) in arms.items()})
    path = write_png(output / "figure.png", figure)
    logger.info("written: %s, %s and %s", output / "table.md", output / "table.csv", path)
    return path


def _run_arm(
    bundle: Path, folder: Path, compression: int, options: dict[str, Any]
) -> tuple[dict[str, Any], list[np.ndarray], list[np.ndarray]]:
    """Train (or find) one arm; returns its report, held-out volumes and their reconstructions."""
    logger.info("compression %d", compression)
    workflow = open_workflow(
        bundle, "train_autoencoder", "train", {**options, "compression": compression, "run_dir": str(folder)}
    )
    with plain_errors():
        workflow.run()
    evaluator = workflow.parser.get_parsed_content("autoencoder#evaluator")
    report = evaluator.run()
    count = min(PICTURED, len(evaluator.dataset))
    images = [torch.as_tensor(evaluator.dataset[n]["image"])[None].to(evaluator.device) for n in range(count)]
    with torch.no_grad():
        reconstructions = [evaluator.autoencoder.eval()(image) for image in images]
    return report, [picture_of(i[0]) for i in images], [picture_of(r[0]) for r in reconstructions]


def _write_table(output: Path, reports: Mapping[int, Mapping[str, Any]]) -> None:
    header = ["compression", "volumes", *COLUMNS, "trilinear psnr"]
    quantised = all("codebook" in report for report in reports.values())
    header += ["codes used", "perplexity"] if quantised else []
    rows = []
    for compression, report in reports.items():
        figures = [_figure_text(report["reconstruction"][name]) for name in COLUMNS]
        baseline = _figure_text(report["trilinear_baseline"]["psnr"])
        rows.append([compression, report["volumes"], *figures, baseline])
        if quantised:
            codebook = report["codebook"]
            rows[-1] += [f"{100 * codebook['codes_used']:.0f} %", f"{codebook['perplexity']:.0f}"]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    text = "Reconstruction of held-out volumes, mean ± SD.\n\n" + "\n".join(lines) + "\n"
    write_text(output / "table.md", text)
    table = io.StringIO()
    csv.writer(table).writerows([header, *rows])
    write_text(output / "table.csv", table.getvalue())
    logger.info("%s", text)


def _figure_text(entry: Mapping[str, float | None]) -> str:
    spread = "" if entry["std"] is None else f" ± {entry['std']:.2g}"
    return f"{entry['mean']:.4g}{spread}"


def _figure(real: Sequence[np.ndarray], arms: Mapping[int, Sequence[np.ndarray]]) -> np.ndarray:
    """Real volumes and each arm's reconstructions, three planes, and close-ups of the axial slice below."""
    rows = [("real, held out", list(real))]
    rows += [(f"compression {c}", list(volumes)) for c, volumes in arms.items()]
    overview = volume_grid(rows, (-1.0, 1.0))
    close_ups = volume_grid(
        [(f"close-up: {label}", [_close_up(v) for v in volumes]) for label, volumes in rows], (0, 255)
    )
    width = max(overview.shape[1], close_ups.shape[1])
    sheets = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in (overview, close_ups)]
    return np.concatenate(sheets, axis=0)


def _close_up(volume: np.ndarray) -> np.ndarray:
    """The middle of the axial slice as a volume of depth 1, bytes."""
    axial = planes(volume)[0]
    half = [max(2, round(CLOSE_UP * n / 2)) for n in axial.shape[:2]]
    middle = [n // 2 for n in axial.shape[:2]]
    region = tuple(slice(m - h, m + h) for m, h in zip(middle, half, strict=True))
    return np.expand_dims(to_grey(axial[region], -1.0, 1.0), 2)
