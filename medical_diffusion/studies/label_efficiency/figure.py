"""Dice against the share of labels, a line per arm with its 95 % interval (Figure 4 of Medical Diffusion)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medical_diffusion.studies.label_efficiency.plan import Plan
from medical_diffusion.studies.label_efficiency.results import Summary
from medical_diffusion.studies.line_figure import Point, draw_lines


def draw_figure(plan: Plan, summaries: Sequence[Summary], note: str = "") -> np.ndarray:
    """The figure as RGB bytes (height, width, 3).

    Args:
        plan: the study; its order of arms decides their colours.
        summaries: at least one.
        note: a line above the axes, such as how many runs are missing.
    """
    lines = {
        arm.name: [Point(s.fraction, s.dice.value, s.dice.low, s.dice.high) for s in summaries if s.arm == arm.name]
        for arm in plan.arms
    }
    ticks = {s.fraction: f"{s.fraction:g}\n({s.training_subjects})" for s in summaries}
    title = "mean Dice of test subjects with 95 % interval"
    return draw_lines(lines, title, "labelled subjects in % (and number)", dict(sorted(ticks.items())), note)
