"""Lines of measurements with their intervals over a logarithmic axis, the figure of a study.

Drawn with Pillow at twice the size and reduced, which smooths the lines. The axis is logarithmic, since 5 and 10 are as
far apart as 40 and 80; lines stand side by side, so that their intervals are seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 900, 560
SCALE = 2
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 56, 76
"""Margins of the axes."""
COLOURS = ((60, 60, 60), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""Told apart by colour-blind readers too (Okabe and Ito 2008)."""
INK, GRID = (40, 40, 40), (225, 225, 225)
DODGE = 9
"""Pixels between the lines at one place."""
MOST_LINES = 7
"""Of the grid, but for its ends."""


@dataclass(frozen=True)
class Point:
    """A measurement at a place of the axis; the interval is left out where its ends are NaN."""

    x: float
    value: float
    low: float = math.nan
    high: float = math.nan


def draw_lines(
    lines: Mapping[str, Sequence[Point]],
    title: str,
    axis: str,
    ticks: Mapping[float, str],
    note: str = "",
    floor: float | None = None,
    dodge: float = DODGE,
) -> np.ndarray:
    """The figure as RGB bytes (height, width, 3).

    Args:
        lines: points by name; the order decides their colours. Points that are not finite are left out.
        title: above, what the values are.
        axis: below, what the places are; they are positive.
        ticks: text at places.
        note: above at the right, such as how many runs are missing.
        floor: a value drawn as a dashed line, such as the best that can be reached.
        dodge: pixels between lines at one place.
    """
    canvas = _Canvas()
    values = [v for points in lines.values() for p in points for v in (p.value, p.low, p.high) if math.isfinite(v)]
    values = [*values, *([] if floor is None else [floor])] or [0.0, 1.0]
    low, high, step = value_axis(min(values), max(values))
    decimals = max(2, -math.floor(math.log10(step) + 1e-9))
    places = sorted({*ticks, *(p.x for points in lines.values() for p in points)})

    def x(place: float, line: float) -> float:
        if len(places) == 1:
            share = 0.5
        else:
            share = 0.06 + 0.88 * math.log(place / places[0]) / math.log(places[-1] / places[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT) + dodge * (line - (len(lines) - 1) / 2)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        canvas.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], GRID, 1)
        canvas.text((LEFT - 10, y(value)), f"{value:.{decimals}f}", "rm")
    for place, text in ticks.items():
        canvas.text((x(place, (len(lines) - 1) / 2), HEIGHT - BOTTOM + 8), text, "ma")
    canvas.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], INK, 1)
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 22), axis, "mm")
    canvas.text((14, 14), title, "lt")
    canvas.text((WIDTH - RIGHT, 14), note, "rt")
    if floor is not None:
        for start in range(LEFT, WIDTH - RIGHT, 14):
            canvas.line([(start, y(floor)), (start + 7, y(floor))], INK, 1)

    for number, points in enumerate(lines.values()):
        colour = COLOURS[number % len(COLOURS)]
        known = [p for p in points if math.isfinite(p.value)]
        canvas.line([(x(p.x, number), y(p.value)) for p in known], colour, 2)
        for point in known:
            place = x(point.x, number)
            if math.isfinite(point.low):
                canvas.line([(place, y(point.low)), (place, y(point.high))], colour, 1.5)
                for end in (y(point.low), y(point.high)):
                    canvas.line([(place - 3, end), (place + 3, end)], colour, 1.5)
            canvas.dot((place, y(point.value)), 4, colour)
    _legend(canvas, list(lines))
    return canvas.reduced()


def value_axis(low: float, high: float) -> tuple[float, float, float]:
    """Round ends that hold [low, high], and the step between at most nine lines: 1, 2 or 5 times a power of ten."""
    least = max((high - low) / MOST_LINES, 1e-3 * max(abs(low), abs(high)), 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step, step


def _legend(canvas: _Canvas, names: Sequence[str]) -> None:
    """Above the axes, in one line: there it hides no point."""
    x = float(LEFT)
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        canvas.line([(x, TOP - 14), (x + 22, TOP - 14)], colour, 2)
        canvas.dot((x + 11, TOP - 14), 4, colour)
        canvas.text((x + 28, TOP - 14), name, "lm")
        x += 28 + canvas.width(name) + 22


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
