"""Cell nuclei of a histological section: where they lie, how they look, and their painting in haematoxylin.

A nucleus is an ellipse with a gently uneven outline, ``rho = 1 + sum a_k cos(k theta + phi_k)``. Its chromatin is a
rim along the membrane, a coarse texture inside, and in vesicular nuclei a clear middle with one or two nucleoli.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.plane import Plane
from medical_diffusion.data.phantoms.primitives import Array

EOSIN_IN_NUCLEUS = 0.08


@dataclass(frozen=True)
class Look:
    """A kind of nucleus: ranges from which each one is drawn.

    Attributes:
        kind: its name in the mask.
        length: longer semi-axis (um).
        slimness: shorter by longer semi-axis.
        stain: concentration of haematoxylin.
        rim: what the membrane adds to it.
        grain: relative deviation of the chromatin.
        nucleoli: largest number of them.
    """

    kind: str
    length: tuple[float, float]
    slimness: tuple[float, float]
    stain: tuple[float, float]
    rim: float
    grain: float
    nucleoli: int


EPITHELIAL = Look("nucleus", (3.9, 5.2), (0.45, 0.62), (0.72, 0.95), 0.12, 0.16, 0)
TUMOUR = Look("nucleus", (4.3, 6.4), (0.74, 0.98), (0.26, 0.48), 0.34, 0.3, 2)
FIBROBLAST = Look("nucleus", (4.2, 7.0), (0.2, 0.3), (0.6, 0.9), 0.0, 0.12, 0)
LYMPHOCYTE = Look("lymphocyte", (2.5, 3.2), (0.85, 1.0), (1.0, 1.3), 0.0, 0.1, 0)


@dataclass(frozen=True)
class Nucleus:
    """One nucleus: centre (x, y), semi-axes and direction of the longer one (um, radians)."""

    look: Look
    centre: tuple[float, float]
    axes: tuple[float, float]
    angle: float
    stain: float
    wave: tuple[float, float, float, float]
    nucleoli: tuple[tuple[float, float], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, look: Look, centre: Array, angle: float) -> Nucleus:
        length = rng.uniform(*look.length)
        count = rng.integers(0, look.nucleoli + 1)
        spots = tuple(
            (float(r), float(a)) for r, a in zip(rng.uniform(0, 0.5, count), rng.uniform(0, 7, count), strict=True)
        )
        wave = (rng.uniform(0, 0.07), rng.uniform(0, 7), rng.uniform(0, 0.05), rng.uniform(0, 7))
        axes = (length, length * rng.uniform(*look.slimness))
        return cls(look, (float(centre[0]), float(centre[1])), axes, angle, rng.uniform(*look.stain), wave, spots)

    @property
    def area(self) -> float:
        """Of the ellipse, um^2."""
        return math.pi * self.axes[0] * self.axes[1]


def paint_nucleus(plane: Plane, nucleus: Nucleus, chromatin: Array, label: int) -> None:
    """Lay a nucleus over the section; ``chromatin`` is a random surface of deviation 1 over the plane."""
    look, (long, short), (cx, cy) = nucleus.look, nucleus.axes, nucleus.centre
    box = plane.box([nucleus.centre], 1.15 * long)
    x, y = plane.within(box)
    if x.size == 0 or y.size == 0:
        return
    cos, sin = math.cos(nucleus.angle), math.sin(nucleus.angle)
    u, v = ((x - cx) * cos + (y - cy) * sin) / long, ((y - cy) * cos - (x - cx) * sin) / short
    theta, (a2, p2, a3, p3) = np.arctan2(v, u), nucleus.wave
    rho = np.sqrt(u * u + v * v) / (1 + a2 * np.cos(2 * theta + p2) + a3 * np.cos(3 * theta + p3))
    coverage = plane.coverage((rho - 1) * short)
    stain = nucleus.stain * (1 + look.grain * chromatin[box]) + look.rim * np.square(np.minimum(rho, 1.1)) ** 2
    for r, angle in nucleus.nucleoli:
        away = np.hypot((u - r * math.cos(angle)) * long, (v - r * math.sin(angle)) * short)
        stain = stain + 0.4 * plane.coverage(away - 0.9)
    values = np.stack([np.maximum(stain, 0.1), np.full_like(stain, EOSIN_IN_NUCLEUS)], axis=-1)
    plane.paint(coverage, values, box, label)


def apart(points: Array, others: Array, distance: float) -> Array:
    """The points (n, 2) that keep a distance to all ``others`` and to those of them taken before."""
    kept: list[Array] = []
    for point in points:
        near = [others, np.array(kept).reshape(-1, 2)]
        if all(np.square(group - point).sum(1).min(initial=np.inf) >= distance**2 for group in near):
            kept.append(point)
    return np.array(kept).reshape(-1, 2)
