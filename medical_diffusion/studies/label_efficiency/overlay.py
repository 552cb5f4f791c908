"""Segmentations of a few test subjects by arm at the fewest labels, right green and wrong red (Figure 5).

The runs' evaluation has drawn each subject already; here the pictures are put side by side, one row per arm, so that a
column shows the same subject.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medical_diffusion.pictures import read_png, tile_grid
from medical_diffusion.studies.label_efficiency.plan import Plan
from medical_diffusion.studies.label_efficiency.results import Reports
from medical_diffusion.studies.label_efficiency.runner import REPORT

SUBJECTS = 4


def draw_overlays(folder: Path, plan: Plan, reports: Reports) -> np.ndarray | None:
    """The figure as RGB bytes (height, width, 3); None where no run has left pictures.

    Args:
        folder: of the study.
        plan: the study.
        reports: of the finished runs.
    """
    for fraction in plan.fractions:
        runs = {}
        for cell in plan.cells:
            if cell.fraction == fraction and cell in reports and cell.arm not in runs:
                pictures = _pictures(folder / cell.folder / REPORT.parent, reports[cell]["report"]["cases"])
                if pictures:
                    runs[cell.arm] = cell, pictures
        if not runs:
            continue
        names = set.intersection(*(set(pictures) for _, pictures in runs.values()))
        subjects = sorted(names)[:SUBJECTS]
        rows = []
        for arm, (cell, pictures) in runs.items():
            count = reports[cell]["report"]["training_subjects"]
            label = f"{arm}: {fraction:g} % of the labels (n = {count}); green right, red wrong"
            rows.append((label, [[read_png(pictures[subject])] for subject in subjects]))
        return tile_grid(rows) if subjects else None
    return None


def _pictures(reports: Path, cases: list[dict[str, object]]) -> dict[str, Path]:
    """The first picture of each subject that has one."""
    found: dict[str, Path] = {}
    for case in cases:
        if case.get("overlay"):
            path = reports / str(case["overlay"])
            if path.is_file():
                found.setdefault(str(case["subject"]), path)
    return found
