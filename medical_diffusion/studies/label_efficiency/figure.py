"""Dice against the share of labels, a line per arm with its 95 % interval (Figure 4 of Medical Diffusion).

Drawn with Pillow at twice the size and reduced, which smooths the lines. Shares stand on a logarithmic axis, since 5 %
and 10 % are as far apart as 40 % and 80 %; arms stand side by side, so that their intervals are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medical_diffusion.studies.label_efficiency.plan import Plan
from medical_diffusion.studies.label_efficiency.results import Summary

WIDTH, HEIGHT = 900, 560
SCALE = 2
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 56, 76
"""Margins of the axes."""
COLOURS = ((60, 60, 60), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""Told apart by colour-blind readers too (Okabe and Ito 2008); the first is that of no pre-training."""
INK, GRID = (40, 40, 40), (225, 225, 225)
DODGE = 9
"""Pixels between the arms at one share."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)


def draw_figure(plan: Plan, summaries: Sequence[Summary], note: str = "") -> np.ndarray:
    """The figure as RGB bytes (height, width, 3).

    Args:
        plan: the study; its order of arms decides their colours.
        summaries: at least one.
        note: a line below the axes, such as how many runs are missing.
    """
    canvas = _Canvas()
    arms = [arm.name for arm in plan.arms]
    fractions = sorted({s.fraction for s in summaries})
    ends = [v for s in summaries for v in (s.dice.value, s.dice.low, s.dice.high) if math.isfinite(v)] or [0.0, 1.0]
    low, high, step = _axis(min(ends), max(ends))
    counts = {s.fraction: s.training_subjects for s in summaries}

    def x(fraction: float, arm: int) -> float:
        width = WIDTH - LEFT - RIGHT
        if len(fractions) == 1:
            place = 0.5
        else:
            span = math.log(fractions[-1] / fractions[0])
            place = 0.06 + 0.88 * math.log(fraction / fractions[0]) / span
        return LEFT + place * width + DODGE * (arm - (len(arms) - 1) / 2)

    def y(dice: float) -> float:
        return TOP + (high - dice) / (high - low) * (HEIGHT - TOP - BOTTOM)

    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        canvas.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], GRID, 1)
        canvas.text((LEFT - 10, y(value)), f"{value:.2f}", "rm")
    middle = (len(arms) - 1) / 2
    for fraction in fractions:
        canvas.text((x(fraction, 0) + DODGE * middle, HEIGHT - BOTTOM + 8), f"{fraction:g}\n({counts[fraction]})", "ma")
    canvas.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], INK, 1)
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 22), "labelled subjects in % (and number)", "mm")
    canvas.text((14, 14), "mean Dice of test subjects with 95 % interval", "lt")
    canvas.text((WIDTH - RIGHT, 14), note, "rt")

    for number, arm in enumerate(arms):
        colour = COLOURS[number % len(COLOURS)]
        points = [s for s in summaries if s.arm == arm and math.isfinite(s.dice.value)]
        places = [(x(s.fraction, number), y(s.dice.value)) for s in points]
        canvas.line(places, colour, 2)
        for (place, height), summary in zip(places, points, strict=True):
            if math.isfinite(summary.dice.low):
                ends_of_bar = y(summary.dice.low), y(summary.dice.high)
                canvas.line([(place, ends_of_bar[0]), (place, ends_of_bar[1])], colour, 1.5)
                for end in ends_of_bar:
                    canvas.line([(place - 3, end), (place + 3, end)], colour, 1.5)
            canvas.dot((place, height), 4, colour)
    _legend(canvas, arms)
    return canvas.reduced()


def _legend(canvas: _Canvas, arms: Sequence[str]) -> None:
    """Above the axes, in one line: there it hides no point."""
    x = float(LEFT)
    for number, arm in enumerate(arms):
        colour = COLOURS[number % len(COLOURS)]
        canvas.line([(x, TOP - 14), (x + 22, TOP - 14)], colour, 2)
        canvas.dot((x + 11, TOP - 14), 4, colour)
        canvas.text((x + 28, TOP - 14), arm, "lm")
        x += 28 + canvas.width(arm) + 22


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Round ends that hold [low, high] and the step between at most nine lines."""
    step = next((s for s in STEPS if (high - low) / s <= 7), STEPS[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step, step


class _Canvas:
    """Lines, dots and text in pixels of the final size."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(15 * SCALE)

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        scaled = [(SCALE * x, SCALE * y) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(SCALE * width), joint="curve")

    def dot(self, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
        (x, y), r = centre, radius
        self._draw.ellipse([SCALE * (x - r), SCALE * (y - r), SCALE * (x + r), SCALE * (y + r)], fill=colour)

    def text(self, place: tuple[float, float], text: str, anchor: str) -> None:
        x, y = SCALE * place[0], SCALE * place[1]
        if "\n" in text:
            for line in text.split("\n"):
                self._draw.text((x, y), line, fill=INK, font=self._font, anchor=anchor)
                y += 18 * SCALE
        else:
            self._draw.text((x, y), text, fill=INK, font=self._font, anchor=anchor)

    def width(self, text: str) -> float:
        return self._draw.textlength(text, font=self._font) / SCALE

    def reduced(self) -> np.ndarray:
        return np.asarray(self._image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
