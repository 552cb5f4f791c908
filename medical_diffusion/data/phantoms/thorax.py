"""The shape of one phantom chest: what is drawn at random, and the surfaces that follow from it.

Body coordinates in mm: x to the patient's right, y anterior, z superior, origin near the middle of the chest.
Sizes are those of adults with arms raised, scaled so that the body fits a field of view of 320 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.primitives import Array, Points, domed_column, ellipsoid, rotation, smooth_max

LEFT, RIGHT = -1, 1  # the sign of x


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
    def draw(cls, rng: np.random.Generator) -> Thorax:
        """One random chest."""
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
        extent = reach * size
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
            heart_axes=shape * size,
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
