"""Blood vessels of the retina as tapering paths, in disc diameters from the middle of the optic disc.

Four arcades leave the disc, above and below, to the temporal and the nasal side, each with an artery and a wider vein.
The temporal ones arch around the macula. Branches leave them to both sides by a random walk of their heading and end
before the foveal avascular zone. Coordinates: t towards the temple, s upwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.primitives import Array

AVASCULAR_RADIUS = 0.36  # disc diameters around the fovea without vessels
STEP = 0.16  # disc diameters between the points of a path
VEIN_RADIUS, ARTERY_RADIUS = 0.041, 0.03  # at the disc: 150 and 110 um wide for a disc of 1.85 mm
REACH = 4.4  # paths end at this distance from the disc
TURN_MEMORY, TURN_DEVIATION = 0.7, 0.075  # of the heading's random walk, per step
SMALLEST = 0.007  # radius below which no branch leaves


@dataclass(frozen=True)
class Vessel:
    """One path: points (n, 2) as (t, s) and the radius at each, in disc diameters."""

    points: Array
    radii: Array
    vein: bool


def draw_vessels(rng: np.random.Generator, fovea: Array, cup_ratio: float) -> list[Vessel]:
    """The tree of one eye.

    Args:
        rng: generator.
        fovea: its place (t, s).
        cup_ratio: a wide cup pushes the trunk to the nasal side.
    """
    trunk, vessels = np.array([-0.04 - 0.2 * cup_ratio, 0.0]), []
    for vein in (False, True):
        radius = (VEIN_RADIUS if vein else ARTERY_RADIUS) * rng.uniform(0.9, 1.15)
        for up in (1, -1):
            height, side = rng.uniform(1.5, 2.05), rng.uniform(0.1, 0.3) * (1 if vein else -1)
            control = np.array(
                [
                    trunk,
                    (trunk[0] + rng.uniform(-0.05, 0.15), up * (0.75 * height + side) + 0.4 * fovea[1]),
                    (rng.uniform(0.9, 1.5), up * (1.3 * height + side) + fovea[1]),
                    (rng.uniform(3.9, 4.6), up * rng.uniform(0.75, 1.3) * height + fovea[1]),
                ]
            )
            vessels += _with_branches(rng, _bezier(control, rng), (radius, 0.45 * radius), vein, fovea, branches=9)
            out = rng.uniform(1.3, 2.1)
            nasal = np.array([trunk, (trunk[0], 0.7 * up), (-0.8, up * 1.25), (-2.3, up * out)])
            nasal[2:] += rng.normal(0, 0.15, (2, 2))
            vessels += _with_branches(rng, _bezier(nasal, rng), (0.75 * radius, 0.4 * radius), vein, fovea, branches=3)
        for _ in range(rng.integers(1, 4)):  # straight to the macula
            heading = rng.uniform(-0.9, 0.9)
            vessels += _grow(rng, trunk, heading, rng.uniform(1.2, 2.2), 0.4 * radius, vein, fovea, attraction=0.07)
    return vessels


def _bezier(control: Array, rng: np.random.Generator) -> Array:
    """Points about ``STEP`` apart on a cubic Bezier curve, with a gentle wave across it."""
    length = float(np.linalg.norm(np.diff(control, axis=0), axis=1).sum())
    u = np.linspace(0, 1, max(math.ceil(length / STEP), 4))[:, None]
    basis = ((1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3)
    points = sum(b * c for b, c in zip(basis, control, strict=True))
    wave = sum(rng.normal(0, 0.05 / k) * np.sin(k * math.pi * u + rng.uniform(0, math.tau)) for k in (3, 5, 8))
    tangent = np.gradient(points, axis=0)
    across = tangent[:, ::-1] * (1, -1) / np.linalg.norm(tangent, axis=1, keepdims=True)
    return points + np.minimum(3 * u, 1) * wave * across


def _with_branches(
    rng: np.random.Generator, points: Array, radii: tuple[float, float], vein: bool, fovea: Array, branches: int
) -> list[Vessel]:
    """An arcade, and branches at about even distances: alternately to the fovea's side and away from it."""
    width = np.linspace(*radii, len(points))
    vessels = [Vessel(points, width, vein)]
    for number in range(branches):
        share = 0.12 + 0.83 * (number + rng.uniform(0.1, 0.9)) / branches
        index = min(int(share * len(points)), len(points) - 2)
        along = points[index + 1] - points[index]
        heading, inward = math.atan2(along[1], along[0]), number % 2 == 0
        aside = fovea - points[index]
        fovea_left = along[0] * aside[1] > along[1] * aside[0]
        heading += (1 if fovea_left == inward else -1) * rng.uniform(0.5, 1.1)
        length, radius = rng.uniform(0.7, 1.9), rng.uniform(0.45, 0.7) * float(width[index])
        pull = 0.05 if inward else 0.0
        vessels += _grow(rng, points[index], heading, length, radius, vein, fovea, attraction=pull)
    return vessels


def _grow(
    rng: np.random.Generator,
    start: Array,
    heading: float,
    length: float,
    radius: float,
    vein: bool,
    fovea: Array,
    attraction: float,
) -> list[Vessel]:
    """A branch with its own branches; ``attraction`` is the share of the turn to the fovea made in each step."""
    points, turn, grown = [(float(start[0]), float(start[1]))], 0.0, []
    fovea_t, fovea_s = fovea.tolist()
    for shaken in rng.normal(0, TURN_DEVIATION, max(int(length / STEP), 3)).tolist():
        t, s = points[-1]
        to_fovea = math.remainder(math.atan2(fovea_s - s, fovea_t - t) - heading, math.tau)
        turn = TURN_MEMORY * turn + shaken
        heading += turn + attraction * to_fovea
        t, s = t + STEP * math.cos(heading), s + STEP * math.sin(heading)
        if math.hypot(t - fovea_t, s - fovea_s) < AVASCULAR_RADIUS + radius or math.hypot(t, s) > REACH:
            break
        points.append((t, s))
        if radius > 2 * SMALLEST and rng.uniform() < 0.12:
            side = rng.choice((-1, 1)) * rng.uniform(0.5, 0.9)
            grown += _grow(rng, np.array((t, s)), heading + side, 0.6 * length, 0.6 * radius, vein, fovea, attraction)
    if len(points) > 1:
        grown.append(Vessel(np.array(points), np.linspace(radius, 0.5 * radius, len(points)), vein))
    return grown
