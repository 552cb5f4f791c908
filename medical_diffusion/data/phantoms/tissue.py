"""Two architectures of a histological section: ordered glands in stroma, and solid sheets of tumour.

Each paints its compartments as concentrations of haematoxylin and eosin and returns the nuclei that lie in them. Shapes
are formulas, not pixels, so the same nuclei stand in the same places at every size. Lengths in um.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.nuclei import EPITHELIAL, FIBROBLAST, LYMPHOCYTE, TUMOUR, Nucleus, apart
from medical_diffusion.data.phantoms.plane import Plane
from medical_diffusion.data.phantoms.primitives import Array

FIELD_UM = 128.0
MARGIN_UM = 9.0  # nuclei whose middle lies this far outside are still seen
REACH_UM = FIELD_UM / 2 + MARGIN_UM
EOSIN = 1  # layer of the plane; haematoxylin is 0
#: haematoxylin, eosin
STROMA, CYTOPLASM, TUMOUR_CYTOPLASM = (0.05, 0.26), (0.12, 0.2), (0.15, 0.22)
LUMEN, GOBLET, MUCIN = (0.0, 0.02), (0.1, 0.05), (0.15, 0.03)
MASK_LABELS = {"stroma": 0, "epithelium": 1, "lumen": 2, "mucin": 3, "nucleus": 4, "lymphocyte": 5}


@dataclass(frozen=True)
class Blob:
    """A wavy ellipse, ``rho = 1`` on its outline: ``rho`` is the radius over that of the outline in its direction."""

    centre: Array
    axes: tuple[float, float]
    turn: float
    wave: tuple[float, float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, centre: Array, radius: tuple[float, float], slimmest: float) -> Blob:
        length = rng.uniform(*radius)
        wave = (rng.uniform(0, 0.06), rng.uniform(0, 7), rng.uniform(0, 0.04), rng.uniform(0, 7))
        return cls(centre, (length, length * rng.uniform(slimmest, 1)), rng.uniform(0, math.pi), wave)

    @property
    def radius(self) -> float:
        """Of a circle of about its size."""
        return math.sqrt(self.axes[0] * self.axes[1])

    def rho(self, x: Array, y: Array) -> Array:
        x, y = x - self.centre[0], y - self.centre[1]
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        u, v = (x * cos + y * sin) / self.axes[0], (y * cos - x * sin) / self.axes[1]
        return np.hypot(u, v) / self._outline(np.arctan2(v, u))

    def at(self, rho: Array, theta: Array) -> Array:
        """Points (n, 2) at ``rho`` in the directions ``theta``."""
        r = rho * self._outline(theta)
        u, v = self.axes[0] * r * np.cos(theta), self.axes[1] * r * np.sin(theta)
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return self.centre + np.stack([u * cos - v * sin, u * sin + v * cos], axis=-1)

    def _outline(self, theta: Array) -> Array:
        a, p, b, q = self.wave
        return 1 + a * np.cos(3 * theta + p) + b * np.cos(5 * theta + q)


def paint_stroma(plane: Plane, flow: float, rng: np.random.Generator) -> None:
    """Wavy bundles of collagen in the direction ``flow`` (radians), with clefts between them."""
    across = plane.y * math.cos(flow) - plane.x * math.sin(flow)
    waves = across + 6 * plane.noise(rng, 24, FIELD_UM)
    bundles = np.sin(waves * (math.tau / 9)) + 0.6 * np.sin(waves * (math.tau / 4.3) + 1)
    plane.layers[..., EOSIN] *= 1 + 0.14 * bundles + 0.12 * plane.noise(rng, 10, FIELD_UM)
    cleft = np.clip(0.9 * plane.noise(rng, 7, FIELD_UM) - 0.5 * bundles - 1.1, 0, 0.75)
    plane.paint(cleft, LUMEN, np.s_[:, :])


def draw_glands(plane: Plane, flow: float, rng: np.random.Generator, texture_rng: np.random.Generator) -> list[Nucleus]:
    """Crypts on a lattice: lumen, goblet cells, cytoplasm and a ring of nuclei that point to the lumen."""
    nuclei: list[Nucleus] = []
    glands = [Blob.draw(rng, c, (27, 34), 0.75) for c in _lattice(rng, rng.uniform(72, 80), 0.04, margin=36)]
    grain = plane.noise(texture_rng, 4, FIELD_UM)
    for gland in glands:
        box = plane.box([gland.centre], 1.12 * max(gland.axes))
        lumen, (x, y) = rng.uniform(0.22, 0.42), plane.within(box)
        rho = gland.rho(x, y)
        body = np.multiply.outer(1 + 0.12 * grain[box], CYTOPLASM)
        plane.paint(plane.coverage((rho - 1) * gland.radius), body, box, MASK_LABELS["epithelium"])
        circumference = math.tau * gland.radius * 0.84
        count = round(circumference / rng.uniform(5.8, 7.0))
        theta = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * math.tau / count
        for centre in gland.at(np.full(count, 0.5 * (lumen + 0.68)), theta)[rng.uniform(size=count) < 0.55]:
            cell = plane.box([centre], 5)
            cx, cy = plane.within(cell)
            vacuole = plane.coverage(np.hypot(cx - centre[0], cy - centre[1]) - 3.2)
            plane.paint(vacuole, GOBLET, cell)
        plane.paint(plane.coverage((rho - lumen) * gland.radius), LUMEN, box, MASK_LABELS["lumen"])
        basal = rng.normal(0.83, 0.035, count)
        feet, tips = gland.at(basal, theta), gland.at(basal - 0.05, theta)
        for foot, tip in zip(feet, tips, strict=True):
            angle = math.atan2(*(tip - foot)[::-1]) + rng.normal(0, 0.15)
            nuclei.append(Nucleus.draw(rng, EPITHELIAL, foot, angle))
    free = _random_points(rng, 150)
    free = free[np.all([gland.rho(*free.T) > 1.14 for gland in glands], axis=0)]
    free = apart(free, np.empty((0, 2)), 8)
    split = int(0.3 * len(free) * rng.uniform())
    nuclei += [Nucleus.draw(rng, LYMPHOCYTE, p, 0) for p in free[:split]]
    return nuclei + [Nucleus.draw(rng, FIBROBLAST, p, flow + rng.normal(0, 0.3)) for p in free[split:]]


def draw_sheets(plane: Plane, flow: float, rng: np.random.Generator, texture_rng: np.random.Generator) -> list[Nucleus]:
    """Solid tumour between thin strands of stroma, with lakes of mucin and lymphocytes everywhere."""
    offset, amplitude, phase = rng.uniform(-50, 50), rng.uniform(3, 10), rng.uniform(0, 7)
    width, period = rng.uniform(3, 7), rng.uniform(80, 100)

    def outside_strands(x: Array, y: Array) -> Array:
        along, across = x * math.cos(flow) + y * math.sin(flow), y * math.cos(flow) - x * math.sin(flow)
        wavy = (across - offset + amplitude * np.sin(along * math.tau / 70 + phase)) / period
        return np.abs(wavy - np.round(wavy)) * period - width

    whole = np.s_[:, :]
    body = np.multiply.outer(1 + 0.12 * plane.noise(texture_rng, 5, FIELD_UM), TUMOUR_CYTOPLASM)
    plane.paint(plane.coverage(-outside_strands(plane.x, plane.y)), body, whole, MASK_LABELS["epithelium"])
    lakes = [Blob.draw(rng, c, (9, 22), 0.5) for c in _random_points(rng, int(rng.integers(0, 3)))]
    streaks = np.multiply.outer(1 + 0.35 * plane.noise(texture_rng, 6, FIELD_UM), MUCIN)
    for lake in lakes:
        share = plane.coverage((lake.rho(plane.x, plane.y) - 1) * lake.radius, 2)
        plane.paint(share, streaks, whole, MASK_LABELS["mucin"])

    def dry(points: Array, least: float) -> Array:
        return points[np.all([lake.rho(*points.T) > least for lake in lakes] or [np.ones(len(points), bool)], axis=0)]

    cells = dry(_lattice(rng, rng.uniform(11.4, 12.8), 0.09, MARGIN_UM), 1.25)
    cells = cells[outside_strands(*cells.T) > 3.5]
    nuclei = [Nucleus.draw(rng, TUMOUR, p, rng.uniform(0, math.pi)) for p in cells]
    spindles = dry(_random_points(rng, 400), 1.2)
    spindles = apart(spindles[outside_strands(*spindles.T) < -2][:40], cells, 9)
    nuclei += [Nucleus.draw(rng, FIBROBLAST, p, flow + rng.normal(0, 0.3)) for p in spindles]
    guests = apart(dry(_random_points(rng, int(rng.integers(70, 170))), 0.9), cells, 5.5)
    return nuclei + [Nucleus.draw(rng, LYMPHOCYTE, p, 0) for p in guests]


def _random_points(rng: np.random.Generator, count: int) -> Array:
    return rng.uniform(-REACH_UM, REACH_UM, (count, 2))


def _lattice(rng: np.random.Generator, spacing: float, jitter: float, margin: float) -> Array:
    """Points (n, 2) about ``spacing`` apart, up to ``margin`` outside: a hexagonal lattice, turned, shifted, shaken."""
    reach = FIELD_UM / 2 + margin
    n = math.ceil(1.5 * reach / spacing) + 1
    i, j = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1))
    grid = np.stack([i + 0.5 * (j % 2), j * math.sqrt(0.75)], axis=-1).reshape(-1, 2) * spacing
    turn = rng.uniform(0, math.tau)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = (grid + rng.uniform(-0.5, 0.5, 2) * spacing) @ matrix.T + rng.normal(0, jitter * spacing, grid.shape)
    return points[(np.abs(points) < reach).all(1)]
