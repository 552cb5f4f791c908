"""Schematic T1-weighted brain without skull: folded cortex, white matter, deep nuclei, ventricles, cerebellum.

The cortex follows from one surface, the outline of the tissue: a smooth hull (cerebrum, temporal lobes) less the clefts
in it. Clefts are the fissure between the hemispheres, the Sylvian fissures, and sulci: the zeros of a random field that
depends on direction alone, so that they run inwards from the hull. Grey matter is what lies within a cortex' thickness
of the tissue's outline, white matter what lies deeper. Folds are wider and cortex thicker than in life (about 3/2), so
that voxels of 6 mm still show them. Atrophy widens sulci and ventricles together and thins the cortex.

Brain coordinates are those of a brain of medium size in mm, x to the right, y anterior, z superior, origin near the
thalami. Orientation is RAS+.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.mri import WaveField, bias_field, magnitude_noise, noise_deviation
from medical_diffusion.data.phantoms.primitives import (
    Array,
    Box,
    Canvas,
    Phantom,
    Point,
    Points,
    chain,
    ellipsoid,
    rotation,
    smooth_max,
    smooth_min,
)

MASK_LABELS = {
    "background": 0,
    "white_matter": 1,
    "grey_matter": 2,
    "ventricles": 3,
    "cerebellum": 4,
    "brainstem": 5,
    "sulcal_fluid": 6,
    "deep_grey_matter": 7,
}
VERSION = 1  # raised with every change of what a seed draws
SIGNAL = {
    "fluid": 130,
    "grey": 480,
    "deep_grey": 560,
    "thalamus": 610,
    "white": 790,
    "brainstem": 730,
    "cerebellar_cortex": 500,
    "cerebellar_white": 740,
}
FIELD_OF_VIEW_MM = (170.0, 200.0, 170.0)
FOLD_WAVELENGTH_MM = 38.0
SIDES = (-1, 1)  # sign of x: left, right


@dataclass(frozen=True)
class Brain:
    """Dimensions in mm of one phantom; ``draw`` makes them from a generator."""

    turn: Array
    shift: Array
    size: Array  # mm per unit of brain coordinates, along x, y, z
    atrophy: float  # 0 to 1
    side_factor: dict[int, float]  # ventricle size of each side
    lean: float  # how far the fissure strays from the middle
    cortex: float
    sulcus: float  # half width
    sulcus_depth: float
    fissure: float  # half width
    ventricle: float  # factor on all radii
    folds: WaveField
    bends: WaveField  # of the outline
    winding: WaveField  # of the sulci on their way inwards

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Brain:
        """One random brain."""
        u = rng.uniform
        atrophy = float(u() ** 1.3)
        asymmetry = u(-0.22, 0.22)
        return cls(
            turn=rotation((u(-8, 8), u(-4, 4), u(-6, 6))),
            shift=np.array([u(-4, 4), u(-4, 4), u(-9, -4)]),
            size=u(0.92, 1.07) * np.array([u(0.95, 1.05), u(0.95, 1.05), u(0.95, 1.05)]),
            atrophy=atrophy,
            side_factor={-1: 1 + asymmetry, 1: 1 - asymmetry},
            lean=u(-2.5, 2.5),
            cortex=4.2 - 0.7 * atrophy,
            sulcus=0.7 + 1.3 * atrophy,
            sulcus_depth=u(13, 18),
            fissure=1.2 + 1.2 * atrophy,
            ventricle=0.75 + 0.95 * atrophy + u(-0.1, 0.1),
            folds=WaveField(rng, FOLD_WAVELENGTH_MM, waves=28),
            bends=WaveField(rng, 70.0, waves=12),
            winding=WaveField(rng, 42.0, waves=12),
        )

    def block(self, canvas: Canvas, low: Point, high: Point) -> tuple[Box, Points]:
        """Index range of a block of brain coordinates on a canvas, and the coordinates within."""
        box = canvas.region(self.size * low, self.size * high)
        return box, [v * np.float32(1 / s) for v, s in zip(canvas.within(box), self.size, strict=True)]

    def cerebrum(self, p: Points) -> tuple[Array, Array]:
        """Smooth outlines of what lies above the base of the skull, and of the two temporal lobes."""
        upper = ellipsoid(p, (0, -2, 8), (66, 85, 61)) + 1.5 * self.bends(p)
        upper = smooth_max(upper, -19 - 0.12 * (p[1] + 10) - p[2], 14)
        lobes = [
            ellipsoid(p, (side * 38, 4, -19), (25, 42, 22), rotation((-6, side * 20, side * 10))) for side in SIDES
        ]
        return upper, np.minimum(*lobes)

    def clefts(self, p: Points, upper: Array, temporal: Array) -> Array:
        """Signed distance to everything that cuts into the cerebrum."""
        hull = smooth_min(upper, temporal, 7)
        radius = np.sqrt(np.square(p[0] / 66) + np.square((p[1] + 2) / 85) + np.square((p[2] - 8) / 61)) + 0.05
        winding = 3.5 * self.winding(p)
        outward = [p[0] / radius + winding, (p[1] + 2) / radius - winding, (p[2] - 8) / radius + winding]
        folds = self.folds.distance_to_zero(outward) * radius
        sulci = np.maximum(folds - self.sulcus, -hull - self.sulcus_depth)
        sulci = np.maximum(sulci, 60 * (0.52 - radius))  # towards the middle the folds would crowd
        middle = self.lean * np.sin((p[1] + 2) / 28)
        core = ellipsoid(p, (0, -6, -4), (40, 44, 31))
        fissure = np.maximum(np.abs(p[0] - middle) - self.fissure, -core)
        island = ellipsoid([np.abs(p[0]), p[1], p[2]], (58, 6, -4), (26, 36, 24))
        sylvian = np.maximum(np.abs(temporal) - self.sulcus - 0.8, island)
        return np.minimum(np.minimum(sulci, fissure), sylvian)

    def lateral_ventricle(self, p: Points, side: int) -> Array:
        """Frontal horn, body, atrium, occipital and temporal horn of one side."""
        f = self.ventricle * self.side_factor[side]
        body: list[Point] = [
            (side * (8 + 4 * f), 34, 4),
            (side * (4 + 3 * f), 20, 10),
            (side * (4 + 2 * f), -4, 19),
            (side * (11 + 2 * f), -28, 16),
            (side * 22, -40, 4),
        ]
        occipital: list[Point] = [(side * 22, -40, 4), (side * 19, -62, 2)]
        horn: list[Point] = [(side * 22, -40, 4), (side * 33, -24, -12), (side * 34, -2, -19)]
        d = chain(p, body, np.array([2.5, 5.5, 4.5, 5.0, 6.0]) * f)
        d = np.minimum(d, chain(p, occipital, np.array([5.5, 1.8]) * f))
        return np.minimum(d, chain(p, horn, np.array([5.0, 2.5, 1.8]) * f))


def brain_mri_phantom(
    seed: int,
    image_size: int | Sequence[int] = (32, 32, 32),
    field_of_view: Sequence[float] = FIELD_OF_VIEW_MM,
) -> Phantom:
    """One brain, the same anatomy for a seed at every size.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: voxels (H, W, D), running right, anterior, superior; an axis of size 1 is one 5 mm slice through
            the ventricles.
        field_of_view: mm along x, y, z.

    Returns:
        Phantom: image in units from 0 (exactly that outside the brain) to about 1000, mask with ``MASK_LABELS``, and
        the facts ``atrophy`` (0 to 1), ``cortex_mm``, ``ventricle_scale`` and others.

    Raises:
        UserError: a size or field of view that is not positive.
    """
    shape_rng, bias_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    brain = Brain.draw(shape_rng)
    canvas = Canvas(image_size, field_of_view, brain.turn, brain.shift, brain.size * (0, 0, 12), 0.0)
    _draw_cerebrum(canvas, brain)
    _draw_hindbrain(canvas, brain)
    _draw_deep_structures(canvas, brain)
    canvas.image *= bias_field(canvas.points, bias_rng, bias_rng.uniform(0.04, 0.1))

    clean, mask = canvas.average()
    noise = noise_deviation(shape_rng.uniform(8, 18), canvas.spacing)
    image = np.where(clean > 0, magnitude_noise(clean, noise, noise_rng), 0).astype(np.float32)
    facts: dict[str, object] = {
        "atrophy": round(brain.atrophy, 4),
        "cortex_mm": round(brain.cortex, 2),
        "ventricle_scale": round(brain.ventricle, 3),
        "width_mm": round(132 * float(brain.size[0]), 1),
        "noise": round(noise, 2),
    }
    return Phantom(image, mask, canvas.affine, facts)


def _draw_cerebrum(canvas: Canvas, brain: Brain) -> None:
    """Fluid within the smooth outline, cortex, white matter, and the corpus callosum across the fissure."""
    box, p = brain.block(canvas, (-74, -94, -48), (74, 92, 74))
    upper, temporal = brain.cerebrum(p)
    hull = smooth_min(upper, temporal, 7)
    tissue = np.maximum(hull, -brain.clefts(p, upper, temporal))
    canvas.solid(hull, SIGNAL["fluid"], MASK_LABELS["sulcal_fluid"], box)
    canvas.solid(tissue, SIGNAL["grey"], MASK_LABELS["grey_matter"], box)
    canvas.solid(tissue + brain.cortex, SIGNAL["white"], MASK_LABELS["white_matter"], box)
    box, p = brain.block(canvas, (-26, -46, -4), (26, 46, 34))
    arch = [(0, 32, 2), (0, 36, 10), (0, 28, 20), (0, 6, 26), (0, -20, 25), (0, -34, 18), (0, -37, 11)]
    callosum = chain([0.25 * p[0], p[1], p[2]], arch, (2.5, 5, 4, 3.2, 3.2, 4.5, 4.5))
    canvas.solid(callosum, SIGNAL["white"], MASK_LABELS["white_matter"], box)


def _draw_hindbrain(canvas: Canvas, brain: Brain) -> None:
    """Cerebellum with leaves and white branches, midbrain, pons, medulla, and the fluid around and between them."""
    box, p = brain.block(canvas, (-56, -92, -82), (56, 16, -2))
    halves = [ellipsoid(p, (side * 23, -53, -41), (29, 29, 21), rotation((10, side * 6, 0))) for side in SIDES]
    outline = smooth_min(smooth_min(halves[0], halves[1], 5), ellipsoid(p, (0, -50, -41), (10, 22, 19)), 4)
    stem = chain(p, [(0, -14, -6), (0, -18, -20), (0, -17, -34), (0, -24, -48), (0, -31, -78)], (12, 13, 14, 9, 7))
    stem = smooth_min(stem, ellipsoid(p, (0, -11, -33), (17, 11, 13)), 4)
    stem = np.maximum(stem, -69 - p[2])
    cisterns = np.minimum(smooth_min(outline, stem, 10) - 1.5, outline - 2.5)
    canvas.solid(np.maximum(cisterns, np.abs(p[2] + 38.5) - 28.5), SIGNAL["fluid"], MASK_LABELS["sulcal_fluid"], box)

    y, z = p[1] + 30, p[2] + 40  # leaves fan out from the roof of the fourth ventricle
    radius = np.hypot(y, z)
    phase = 15 * np.arctan2(z, -y) + 0.05 * np.abs(p[0])
    leaf = (np.arccos(np.cos(phase)) / 15) * radius  # mm to the middle of the nearest branch
    gap = (np.arccos(-np.cos(phase)) / 15) * radius
    canvas.solid(outline, SIGNAL["cerebellar_cortex"], MASK_LABELS["cerebellum"], box)
    fissures = np.maximum(np.maximum(gap - 0.8 - 0.6 * brain.atrophy, -outline - 8), outline)
    canvas.solid(fissures, SIGNAL["fluid"] + 120, MASK_LABELS["cerebellum"], box)
    core = smooth_max(np.minimum(leaf - 1.7, -0.55 * outline.min() - (-outline)), outline + 3.5, 2)
    canvas.solid(core, SIGNAL["cerebellar_white"], MASK_LABELS["cerebellum"], box)
    canvas.solid(stem, SIGNAL["brainstem"], MASK_LABELS["brainstem"], box)
    fourth = ellipsoid(p, (0, -32.5, -38), np.array([7, 4, 10]) * (0.8 + 0.3 * brain.ventricle))
    canvas.solid(fourth, SIGNAL["fluid"], MASK_LABELS["ventricles"], box)


def _draw_deep_structures(canvas: Canvas, brain: Brain) -> None:
    """Thalamus, caudate and lentiform nucleus of both sides, then the ventricles between them."""
    box, p = brain.block(canvas, (-44, -72, -26), (44, 50, 34))
    label = MASK_LABELS["deep_grey_matter"]
    for side in SIDES:
        away = 2.5 * (brain.ventricle - 1)
        thalamus = ellipsoid(p, (side * (11 + away), -15, 5), (9, 16, 9), rotation((0, 0, side * 18)))
        caudate = chain(
            p,
            [(side * (13 + 2 * away), 22, 5), (side * (15 + 2 * away), 4, 15), (side * (19 + 2 * away), -18, 17)],
            (6, 4, 2.5),
        )
        lentiform = ellipsoid(p, (side * 26, 4, 1), (7, 17, 9), rotation((0, side * 10, side * -14)))
        canvas.solid(lentiform, SIGNAL["deep_grey"], label, box)
        canvas.solid(caudate, SIGNAL["deep_grey"], label, box)
        canvas.solid(thalamus, SIGNAL["thalamus"], label, box)
    third = ellipsoid(p, (0, -8, 0), (1.2 + 2 * brain.ventricle, 18, 11))
    ventricles = np.minimum(third, np.minimum(*(brain.lateral_ventricle(p, side) for side in SIDES)))
    canvas.solid(ventricles, SIGNAL["fluid"], MASK_LABELS["ventricles"], box)
