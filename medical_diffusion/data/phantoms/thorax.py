"""The shape of one phantom chest: what is drawn at random, and the surfaces that follow from it.

Body coordinates in mm: x to the patient's right, y anterior, z superior, origin near the middle of the chest.
Sizes are those of adults with arms raised, scaled so that the body fits a field of view of 320 mm.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.primitives import (
    Array,
    Place,
    Points,
    domed_column,
    ellipsoid,
    rotation,
    smooth_max,
)

LEFT, RIGHT = -1, 1  # the sign of x
RIB_PERIOD_MM = 27.0

Tube = tuple[Place, Place, float]  # start, end, radius


@dataclass(frozen=True)
class Thorax:
    """Dimensions in mm and values in HU of one phantom; ``draw`` makes them from a generator."""

    turn: Array
    shift: Array
    body: tuple[float, float]  # half width, half depth
    fat: float  # subcutaneous thickness
    cavity: tuple[float, float]  # half width, half depth inside the ribs
    breast: float  # radius, 0 without
    apex: float  # z of the lung apices
    dome: dict[int, float]  # z of the top of each diaphragm dome
    dome_depth: float  # how far the recesses reach below the domes
    mediastinum: float  # half width
    heart_centre: Array
    heart_axes: Array
    heart_turn: Array
    heart_width_ratio: float  # transverse heart diameter over transverse inner chest diameter
    carina: Array
    kyphosis: float
    vertebra_phase: float
    vertebra_height: float
    rib_phase: float
    rib_slope: float
    aorta_radius: float
    lung_hu: float
    lung_gradient: float  # HU per mm towards the back, where a lying patient's lung is denser
    noise_hu: float  # standard deviation in a voxel of 10 mm

    @classmethod
    def draw(cls, rng: np.random.Generator, heart_width_ratio: float | None = None) -> Thorax:
        """One random chest.

        Args:
            rng: where all dimensions come from.
            heart_width_ratio: cardiothoracic ratio, in place of the drawn one; nothing else is drawn otherwise, and a
                heart that is too large for a flat chest is pressed flat instead of made smaller.
        """
        u = rng.uniform
        half_width = u(122, 150)
        half_depth = half_width * u(0.68, 0.82)
        fat, wall = u(5, 18), u(15, 20)
        a, b = half_width - fat - wall, half_depth - fat - wall + 2
        apex, height = u(92, 126), u(160, 205)
        right_dome = apex - height
        left_dome = right_dome - u(4, 18)
        ratio = u(0.40, 0.56)
        heart_turn = rotation((0, 0, u(-12, 12))) @ rotation((0, u(-32, -18), 0)) @ rotation((0, 0, u(-38, -22)))
        shape = np.array([1.0, u(0.68, 0.8), u(0.68, 0.78)])
        reach = np.sqrt(np.square(heart_turn * shape).sum(1))  # half extents along x, y, z for a long axis of 1 mm
        size = min(ratio * a / reach[0], 0.58 * b / reach[1])  # a flat chest holds a smaller heart
        axes, extent = shape * size, reach * size
        if heart_width_ratio is not None:
            size = heart_width_ratio * a / reach[0]
            room = np.array([np.inf, 0.58 * b, 0.27 * height])  # the carina stays above the heart
            pressed = heart_turn * (shape * size) * np.minimum(1, room / (reach * size))[:, None]
            heart_turn, axes, _ = np.linalg.svd(pressed)
            extent = np.sqrt(np.square(pressed).sum(1))
        heart = np.array([-extent[0] * u(0.30, 0.44), b - extent[1] - u(6, 11), left_dome + extent[2] - u(-2, 8)])
        return cls(
            turn=rotation((u(-4, 4), u(-4, 4), u(-8, 8))),
            shift=np.array([u(-9, 9), u(-9, 9), u(-9, 9)]),
            body=(half_width, half_depth),
            fat=fat,
            cavity=(a, b),
            breast=u(26, 38) if u() < 0.45 else 0.0,
            apex=apex,
            dome={RIGHT: right_dome, LEFT: left_dome},
            dome_depth=u(40, 62),
            mediastinum=u(20, 27),
            heart_centre=heart,
            heart_axes=axes,
            heart_turn=heart_turn,
            heart_width_ratio=float(extent[0] / a),
            carina=np.array([u(-2, 6), min(u(58, 64), 0.84 * b) - b, apex - u(84, 100)]),
            kyphosis=u(4, 14),
            vertebra_phase=u(0, 1),
            vertebra_height=u(22, 26),
            rib_phase=u(0, 1),
            rib_slope=u(0.3, 0.55),
            aorta_radius=u(11, 15),
            lung_hu=u(-885, -815),
            lung_gradient=u(0.1, 0.6),
            noise_hu=u(3, 8),
        )

    def spine_y(self, z: Array | float) -> Array | float:
        """y of the centre of the vertebral bodies: a kyphosis whose top lies behind the middle of the chest."""
        return -self.cavity[1] + 21 + self.kyphosis * np.square((z - 10) / 120)

    def torso(self, p: Points) -> Array:
        """Skin without breasts; narrows above the shoulders' level."""
        return domed_column(p, (0, 0), (*self.body, 115), self.apex - 42, boxy=True)

    def rib_cage(self, p: Points) -> Array:
        """Inner surface of the chest wall, open below."""
        return domed_column(p, (0, 2), (*self.cavity, 105), self.apex - 92, boxy=True)

    def heart(self, p: Points) -> Array:
        """Surface of the heart with its great vessels' roots left out."""
        return ellipsoid(p, self.heart_centre, self.heart_axes, self.heart_turn)

    def great_vessels(self) -> list[Tube]:
        """Aorta (ascending, arch, descending), pulmonary trunk and arteries, superior vena cava, arch branches."""
        x0, y0, z0 = self.heart_centre
        zc, r = float(self.carina[2]), self.aorta_radius
        top = z0 + np.sqrt(np.square(self.heart_turn[2] * self.heart_axes).sum())
        back = float(self.spine_y(zc)) + 26
        lower = self.dome[LEFT] - 120
        beside = (-18, float(self.spine_y(z0)) + 27, z0)
        arch = (-17, back, zc + 20)
        crossing, hilum = (-15, 12, zc - 8), (8, 4, zc - 16)
        chains: list[tuple[float, list[Place]]] = [
            (r, [(2, y0 - 2, top - 14), (13, 22, zc + 4), (6, 16, zc + 24), (-8, -2, zc + 30), arch]),
            (0.85 * r, [arch, beside]),
            (0.8 * r, [beside, (-10, float(self.spine_y(lower)) + 29, lower)]),
            (11, [(x0 + 8, y0 + 6, top - 12), crossing]),
            (9, [crossing, (-30, 0, zc - 10)]),
            (9, [crossing, hilum, (34, 0, zc - 16)]),
            (8, [(24, 8, zc + 40), (24, 8, zc - 12), (22, y0 - 8, z0 + 8)]),
        ]
        for x, y, radius in ((12, 10, 6), (-8, 6, 4), (-15, -2, 5)):
            chains.append((radius, [(0.5 * x, y, zc + 32), (1.6 * x, y, self.apex + 20)]))
        return [(start, end, radius) for radius, points in chains for start, end in itertools.pairwise(points)]

    def across_rib(self, y: Array, z: Array) -> Array:
        """Distance (mm) from the middle line of the nearest rib, along the chest wall; ribs slope down to the front."""
        level = ((z + self.rib_slope * (y + self.cavity[1])) / RIB_PERIOD_MM + self.rib_phase) % 1
        return np.abs(level - 0.5) * RIB_PERIOD_MM / math.hypot(1, self.rib_slope)

    def within_vertebra(self, z: Array) -> Array:
        """Height difference (mm) to the middle of the nearest vertebra."""
        level = (z / self.vertebra_height + self.vertebra_phase) % 1
        return np.abs(level - 0.5) * self.vertebra_height

    def diaphragm(self, p: Points, side: int) -> Array:
        """Positive below the dome of one side: a paraboloid that falls off to the recesses, deepest behind."""
        a, b = self.cavity
        across = np.square((p[0] - side * 0.46 * a) / (0.56 * a)) + np.square((p[1] - 0.15 * b) / (1.05 * b))
        fall = self.dome_depth * np.where(p[0] * side > 0.46 * a, across, 0.8 * across)
        return (self.dome[side] - fall - p[2]) * 0.75

    def lung(self, p: Points, side: int, cage: Array) -> Array:
        """Surface of one lung: chest cavity (``cage``, the distance of ``rib_cage``), less mediastinum, heart, spine
        and what lies below the diaphragm."""
        a, b = self.cavity
        column = domed_column(p, (side * 0.42 * a, -6), (0.63 * a, 1.15 * b, 135), self.apex - 135)
        narrowing = 7 * np.clip((p[2] - float(self.carina[2])) / 60, 0, 1)
        wall = self.mediastinum * (1 - 0.4 * np.square(p[1] / b)) - narrowing
        lung = smooth_max(cage, column, 12)
        lung = smooth_max(lung, wall - side * p[0], 10)
        lung = smooth_max(lung, 4 - self.heart(p), 8)
        spine = np.sqrt(np.square(p[0]) + np.square(p[1] - self.spine_y(p[2]))) - 23
        lung = smooth_max(lung, -spine, 8)
        return smooth_max(lung, self.diaphragm(p, side), 8)

    def lung_block(self, side: int) -> tuple[Array, Array]:
        """Opposite corners of a block that holds one lung."""
        a, b = self.cavity
        bottom = self.dome[side] - 1.5 * self.dome_depth
        return np.array([min(0, side * a), 2 - b, bottom]), np.array([max(0, side * a), 2 + b, self.apex])

    def random_points_in_lung(self, rng: np.random.Generator, side: int, count: int, margin: float) -> Array:
        """``count`` points (count, 3) in a lung, at least ``margin`` mm below its surface."""
        low, high = self.lung_block(side)
        found = np.empty((0, 3))
        while len(found) < count:
            tried = rng.uniform(low, high, (16 * count, 3))
            inside = self.lung(tried.T, side, self.rib_cage(tried.T)) < -margin
            found = np.concatenate([found, tried[inside]])
        return found[:count]
