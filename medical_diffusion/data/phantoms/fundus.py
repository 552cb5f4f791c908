"""Schematic colour fundus photograph: retina, macula, vessels and one optic disc, whose cup decides the class.

A field of 30 degrees (about 9 mm of the retina) between disc and fovea, so that the disc keeps a fifth of its width and
its cup is seen at 64 x 64 pixels. The fovea lies 2.5 disc diameters temporal of the disc and a little below: in a right
eye the temple is on the left of the picture. Light is reflected by the choroid and attenuated by pigment and blood, so
macula and vessels multiply the colours beneath them.

The class is the height of the cup by that of the disc (vertical cup-to-disc ratio, Armaly 1967): above about 0.6
glaucoma is suspected. Even seeds are without, odd seeds with glaucoma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.plane import Plane, image_plane
from medical_diffusion.data.phantoms.primitives import Array, Phantom, ellipsoid, rotation
from medical_diffusion.data.phantoms.retina_vessels import draw_vessels

VERSION = 1  # raised with every change of what a seed draws
CLASSES = ("no glaucoma", "glaucoma")
RATIOS = {"no glaucoma": (0.25, 0.5), "glaucoma": (0.65, 0.88)}
MASK_LABELS = {"background": 0, "field": 1, "macula": 2, "vessels": 3, "disc": 4, "cup": 5}
FIELD_MM = 9.0
FINEST_MM = 0.075  # half of a wide vessel
LEVELS = 255
MACULA_RADIUS = 0.55  # disc diameters
BLOOD = {False: (0.13, 0.42, 0.32), True: (0.26, 0.62, 0.46)}  # R, G, B taken by a wide artery, by a wide vein


def fundus_phantom(seed: int, image_size: int | Sequence[int] = (64, 64, 1)) -> Phantom:
    """One fundus photograph; even seeds show no glaucoma, odd ones do.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: pixels (H, W, 1); the field fills the shorter side, and is the same retina at every size.

    Returns:
        Phantom: image (H, W, 1, 3) of whole RGB values 0 to 255, mask (H, W, 1) with ``MASK_LABELS`` (the cup lies on
        the disc, the disc on the vessels), and the facts ``class_name``, ``cup_to_disc_ratio`` (vertical), ``eye``,
        ``disc_centre_mm`` and ``fovea_mm`` (right and down from the middle of the image), ``disc_height_mm``,
        ``field_mm`` (diameter).

    Raises:
        UserError: a size that is not positive, or a depth other than 1.
    """
    size = image_plane(image_size, "fundus photograph")
    shape_rng, texture_rng, camera_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(4))
    name = CLASSES[seed % len(CLASSES)]
    eye = _Eye.draw(shape_rng, shape_rng.uniform(*RATIOS[name]))
    plane = Plane(size, eye.field / min(size), FINEST_MM, (0, 0, 0))
    _retina(plane, eye, texture_rng)
    disc, cup = _optic_disc(plane, eye, texture_rng)
    _vessels(plane, eye, shape_rng, texture_rng)
    plane.label(disc, MASK_LABELS["disc"])
    plane.label(cup, MASK_LABELS["cup"])
    image = _photograph(plane, eye, camera_rng, noise_rng)
    facts: dict[str, object] = {
        "class_name": name,
        "cup_to_disc_ratio": round(eye.cup_height / eye.disc_height, 4),
        "eye": "left" if eye.temporal > 0 else "right",
        "disc_centre_mm": [round(float(v), 3) for v in eye.disc],
        "fovea_mm": [round(float(v), 3) for v in eye.fovea],
        "disc_height_mm": round(eye.disc_height, 3),
        "field_mm": round(eye.field, 3),
    }
    return Phantom(image[:, :, None], plane.labels()[..., None], plane.affine(), facts)


@dataclass(frozen=True)
class _Eye:
    """Places (x right, y down) and lengths in mm; ``temporal`` is 1 where the temple is on the right (a left eye)."""

    temporal: int
    field: float
    disc: Array
    disc_axes: Array
    cup: Array
    cup_axes: Array
    tilt: float
    fovea: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, ratio: float) -> _Eye:
        temporal, tilt = int(rng.choice((-1, 1))), rng.uniform(-14, 14)
        height = rng.uniform(0.85, 1.0)
        disc_axes = np.array([height * rng.uniform(0.84, 0.97), height])
        cup_axes = disc_axes * (rng.uniform(0.9, 1.08), 1)
        cup_axes *= ratio * _half_height(disc_axes, tilt) / _half_height(cup_axes, tilt)
        room = disc_axes - cup_axes
        disc = np.array([-temporal * rng.uniform(1.2, 1.75), rng.uniform(-0.35, 0.35)])
        cup = disc + room * (temporal * rng.uniform(-0.05, 0.35), rng.uniform(-0.25, 0.25))
        fovea = disc + 2 * height * np.array([temporal * rng.uniform(2.35, 2.6), rng.uniform(0.1, 0.35)])
        return cls(temporal, FIELD_MM * rng.uniform(0.97, 1.04), disc, disc_axes, cup, cup_axes, tilt, fovea)

    @property
    def diameter(self) -> float:
        return float(2 * self.disc_axes[1])

    @property
    def disc_height(self) -> float:
        return 2 * _half_height(self.disc_axes, self.tilt)

    @property
    def cup_height(self) -> float:
        return 2 * _half_height(self.cup_axes, self.tilt)


def _half_height(axes: Array, tilt: float) -> float:
    """Vertical half extent of an ellipse turned by ``tilt`` degrees."""
    return math.hypot(axes[0] * math.sin(math.radians(tilt)), axes[1] * math.cos(math.radians(tilt)))


def _retina(plane: Plane, eye: _Eye, rng: np.random.Generator) -> None:
    """The choroid's colour with its mottling and broad vessels, and the macula, darker towards the fovea."""
    red = rng.uniform(165, 225)
    green = rng.uniform(0.4, 0.54)
    colour = red * np.array([1, green, green * rng.uniform(0.3, 0.62)])
    mottling = 0.035 * plane.noise(rng, 0.9, eye.field) + 0.02 * plane.noise(rng, 0.25, eye.field)
    mottling += 0.02 * plane.noise(rng, 0.09, eye.field)
    choroid = 1 - np.minimum(np.abs(plane.noise(rng, 0.36, eye.field)) / 0.6, 1)  # bright ridges: tessellation
    light = 1 + mottling + rng.choice((0.01, 0.03, 0.08)) * (choroid - 0.4)
    away = np.hypot(plane.x - eye.fovea[0], plane.y - eye.fovea[1]) / eye.diameter
    dark = rng.uniform(0.2, 0.3) * np.exp(-np.square(away / 0.62))
    core = rng.uniform(0.18, 0.3) * np.exp(-np.square(away / 0.2))
    for layer, (broad, narrow) in enumerate(((0.6, 0.6), (1, 1), (1, 0.7))):
        plane.layers[..., layer] = colour[layer] * light ** (1, 1.4, 1.2)[layer] * (1 - broad * dark - narrow * core)
    plane.label(plane.coverage(np.hypot(plane.x, plane.y) - eye.field / 2), MASK_LABELS["field"])
    plane.label(plane.coverage(away - MACULA_RADIUS), MASK_LABELS["macula"])


def _optic_disc(plane: Plane, eye: _Eye, rng: np.random.Generator) -> tuple[Array, Array]:
    """A halo of nerve fibres, the rim and the paler cup; returns the coverage of disc and cup with sharp edges."""
    turn = rotation((0, 0, eye.tilt))
    points = np.broadcast_arrays(plane.x, plane.y, np.float32(0))
    disc = ellipsoid(points, (*eye.disc, 0), (*eye.disc_axes, 1), turn)
    cup = ellipsoid(points, (*eye.cup, 0), (*eye.cup_axes, 1), turn)
    whole: tuple[slice, slice] = np.s_[:, :]
    glow = rng.uniform(0.05, 0.25) * np.exp(-np.maximum(disc, 0) / (0.28 * eye.diameter))
    plane.paint(glow, (245, 170, 90), whole)
    warmth = rng.uniform(0, 1)
    rim = np.array([232, 134, 70]) + warmth * np.array([12, 22, 14]) + rng.normal(0, 4, 3)
    pallor = np.array([252, 226, 158]) + rng.uniform(0, 1) * np.array([3, 16, 40])
    plane.paint(plane.coverage(disc, rng.uniform(0.08, 0.16)), rim, whole)
    plane.paint(plane.coverage(cup, rng.uniform(0.1, 0.2)), pallor, whole)
    return plane.coverage(disc), plane.coverage(cup)


def _vessels(plane: Plane, eye: _Eye, rng: np.random.Generator, colour_rng: np.random.Generator) -> None:
    """Blood takes light from what lies beneath, a vein more than an artery, which shows a bright reflex."""
    scale = np.array([eye.temporal, -1]) * eye.diameter
    vessels = draw_vessels(rng, (eye.fovea - eye.disc) / scale, eye.cup_height / eye.disc_height)
    density, reflex = colour_rng.uniform(0.8, 1.1), np.zeros(plane.shape, np.float32)
    depth = {vein: np.zeros(plane.shape, np.float32) for vein in BLOOD}
    for vessel in vessels:
        points, radii = eye.disc + vessel.points * scale, vessel.radii * eye.diameter
        shown = np.hypot(*points.T) < eye.field / 2 + 0.5
        points, radii = points[shown].tolist(), radii[shown].tolist()
        for start, end, *ends in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            box, tube = plane.tube(start, end, (ends[0], ends[1]))
            strength = min(1.0, (ends[0] / 0.05) ** 0.4)
            np.maximum(depth[vessel.vein][box], strength * tube, out=depth[vessel.vein][box])
            if not vessel.vein and ends[0] > 1.5 * plane.step:
                box, core = plane.tube(start, end, (0.3 * ends[0], 0.3 * ends[1]))
                np.maximum(reflex[box], core, out=reflex[box])
    for vein, taken in BLOOD.items():
        plane.layers *= 1 - density * depth[vein][..., None] * taken
    plane.layers *= 1 + 0.25 * (reflex * (1 - depth[True]))[..., None]
    inside = np.hypot(plane.x, plane.y) < eye.field / 2
    plane.label(np.where(inside, np.maximum(depth[False], depth[True]), 0), MASK_LABELS["vessels"])


def _photograph(plane: Plane, eye: _Eye, rng: np.random.Generator, noise_rng: np.random.Generator) -> Array:
    """RGB (H, W, 3): uneven light, white balance, the round aperture, and the sensor's noise."""
    radius = eye.field / 2
    x, y = (p / radius - c for p, c in zip((plane.x, plane.y), rng.uniform(-0.25, 0.25, 2), strict=True))
    light = rng.uniform(0.92, 1.08) * (1 - rng.uniform(0.12, 0.4) * (x * x + y * y))
    aperture = plane.coverage(np.hypot(plane.x, plane.y) - radius, 0.05)
    plane.layers *= (light * aperture)[..., None] * (1 + rng.normal(0, (0.02, 0.03, 0.06)))
    image = plane.average(np.clip(plane.layers, 0, LEVELS))
    inside = plane.average(aperture)[..., None]
    grain = rng.uniform(1.0, 2.5) * noise_rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(np.clip(image + inside * grain, 0, LEVELS)).astype(np.float32)
