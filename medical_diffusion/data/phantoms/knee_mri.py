"""Schematic sagittal knee, T2-weighted with fat saturation, whose anterior cruciate ligament is intact or torn.

Fluid is brightest, then cartilage, then muscle; fat and marrow are dark grey (their fat is suppressed); compact bone,
menisci, tendons and ligaments are black. The class is the anterior cruciate ligament, which runs in the notch between
the femoral condyles from its back and upper end on the lateral condyle down and forward to the tibial plateau:
``intact`` is one straight black band; ``torn`` is two wavy stumps with bright oedema between and around them. The
ligament is about a third thicker than in life and its notch wider, so that voxels of 5 mm show it. Effusion and other
fluid are drawn alike for both classes.

Body coordinates in mm: x to the right, y anterior, z superior, origin in the middle of the joint line. The array's axes
run anterior, superior, right (``nibabel.aff2axcodes`` reads ('A', 'S', 'R')): slices along the last axis are sagittal,
and ``medical_diffusion.pictures`` shows them as its first plane, upright with the front of the knee on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from medical_diffusion.data.phantoms.mri import WaveField, bias_field, magnitude_noise, noise_deviation
from medical_diffusion.data.phantoms.primitives import (
    Array,
    Box,
    Canvas,
    Phantom,
    Place,
    Point,
    Points,
    chain,
    ellipsoid,
    rotation,
    smooth_max,
    smooth_min,
)
from medical_diffusion.shapes import per_axis

CLASSES = ("intact", "torn")
MASK_LABELS = {
    "background": 0,
    "soft_tissue": 1,
    "muscle": 2,
    "femur": 3,
    "tibia": 4,
    "patella": 5,
    "fibula": 6,
    "cartilage": 7,
    "menisci": 8,
    "tendons": 9,
    "posterior_cruciate": 10,
    "anterior_cruciate": 11,
    "fluid": 12,
}
VERSION = 1  # raised with every change of what a seed draws
SIGNAL = {
    "air": 0,
    "skin": 330,
    "fat": 190,
    "muscle": 400,
    "fascia": 130,
    "cortex": 50,
    "marrow": 240,
    "cartilage": 660,
    "capsule": 430,
    "fluid": 930,
    "oedema": 800,
    "ligament": 60,
    "stump": 260,
    "meniscus": 50,
    "vessel": 480,
}
FIELD_OF_VIEW_MM = (150.0, 150.0, 108.0)  # along the array's axes: anterior, superior, right
SIDES = (-1, 1)  # sign of x
LIGAMENT_RADIUS = 4.8
LEVELS = (-90, -50, -20, 5, 28, 50, 90)  # z at which the leg's outline is given: front, back, half width
FRONT = (33, 35, 41, 52, 60, 59, 60)
BACK = (-68, -68, -64, -61, -62, -64, -66)
WIDTH = (47, 46, 47, 50, 52, 53, 58)
TO_BODY = (2, 0, 1)  # the array's axes in body order x, y, z
TO_ARRAY = (1, 2, 0)  # and back


@dataclass(frozen=True)
class Knee:
    """Dimensions in mm of one phantom; ``draw`` makes them from a generator."""

    turn: Array
    shift: Array
    size: float  # mm per unit of knee coordinates
    lateral: int  # sign of x towards the outside: 1 in a right knee
    flexion: float  # degrees
    fat: float  # under the skin
    effusion: float  # 0 to 1
    cartilage: float
    patella_height: float
    texture: WaveField
    strands: WaveField
    wave: WaveField  # of a torn ligament

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Knee:
        """One random knee."""
        u = rng.uniform
        return cls(
            turn=rotation((u(-4, 4), u(-3, 3), u(-4, 4))),
            shift=np.array([u(-2, 2), u(-3, 3), u(-3, 3)]),
            size=u(0.93, 1.05),
            lateral=1 if u() < 0.5 else -1,
            flexion=u(0, 8),
            fat=u(4, 10),
            effusion=float(np.clip(u(-0.6, 1), 0, 1)),
            cartilage=u(2.4, 3.6),
            patella_height=u(24, 34),
            texture=WaveField(rng, 10.0, waves=24),
            strands=WaveField(rng, (60.0, 30.0, 30.0), waves=16),
            wave=WaveField(rng, 18.0, waves=10),
        )

    def block(self, canvas: Canvas, low: Point, high: Point) -> tuple[Box, list[Array]]:
        """Index range of a block of knee coordinates on a canvas, and the coordinates within."""
        box = canvas.region(self.size * np.asarray(low), self.size * np.asarray(high))
        return box, [v * np.float32(1 / self.size) for v in canvas.within(box)]

    def leg(self, p: Points) -> Array:
        """Skin."""
        heights = np.linspace(LEVELS[0], LEVELS[-1], 91)
        profiles = PchipInterpolator(LEVELS, np.array([FRONT, BACK, WIDTH]), axis=1)(heights)
        front, back, width = (np.interp(p[2], heights, profile).astype(np.float32) for profile in profiles)
        depth = (front - back) / 2
        rho = np.sqrt(np.square(p[0] / width) + np.square((p[1] - (front + back) / 2) / depth) + 1e-6)
        return (rho - 1) * np.minimum(width, depth)

    def femur(self, p: Points) -> Array:
        """Shaft, flare, both condyles and the groove for the patella, less the notch between the condyles."""
        top = np.array([0, -4, 30]) + rotation((self.flexion, 0, 0)) @ np.array([0, 0, 120])
        low = np.array([0, -3, 38])
        shaft = chain([0.8 * p[0], p[1], p[2]], [low, 0.7 * low + 0.3 * top, top], (20, 13.5, 14))
        condyles = np.minimum(*(ellipsoid(p, (side * 22, -9, 25), (15.5, 30, 25)) for side in SIDES))
        groove = ellipsoid(p, (0, 8, 33), (31, 18, 21))
        bone = smooth_min(shaft, smooth_min(condyles, groove, 6), 10)
        return smooth_max(bone, -self.notch(p), 2)

    def notch(self, p: Points) -> Array:
        """The room between the condyles, open to the back and below."""
        return ellipsoid(p, (0, -24, 6), (11.5, 36, 25), rotation((-20, 0, 0)))

    @staticmethod
    def plateau(y: Array) -> Array:
        """Height of the tibia's upper surface, which falls to the back."""
        return -6 + 0.07 * y

    def tibia(self, p: Points) -> Array:
        """Plateau with its eminence, tapering to the shaft; the tuberosity in front."""
        down = np.clip(-p[2] / 60, 0, 1)
        width, depth = 38 - 22 * np.sqrt(down), 26 - 10 * np.sqrt(down)
        rho = np.sqrt(np.square(p[0] / width) + np.square((p[1] + 8 - 5 * down) / depth) + 1e-6)
        bone = smooth_max((rho - 1) * np.minimum(width, depth), p[2] - self.plateau(p[1]), 4)
        bone = smooth_min(bone, ellipsoid(p, (0, -8, -7), (9, 9, 8)), 4)
        return smooth_min(bone, ellipsoid(p, (0, 15, -36), (11, 8, 13)), 6)

    def patella(self, p: Points) -> Array:
        """The kneecap."""
        return ellipsoid(p, (0, 41, self.patella_height), (20, 9.5, 20), rotation((6, 0, 0)))

    @property
    def cruciate(self) -> tuple[Array, Array]:
        """Upper and lower end of the anterior cruciate ligament's middle line."""
        return np.array([self.lateral * 5.0, -26.0, 26.0]), np.array([0, 6.0, -4.0])


def knee_mri_phantom(
    seed: int,
    image_size: int | Sequence[int] = (32, 32, 16),
    field_of_view: Sequence[float] = FIELD_OF_VIEW_MM,
) -> Phantom:
    """One knee, the same anatomy for a seed at every size; the ligament of even seeds is intact, of odd ones torn.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: voxels (H, W, D), running anterior, superior, right; an axis of size 1 is one 5 mm slice through
            the anterior cruciate ligament.
        field_of_view: mm along the same axes.

    Returns:
        Phantom: image in units from 0 to about 1000, mask with ``MASK_LABELS`` (``anterior_cruciate`` is the place of
        the ligament, whole or torn), an affine whose axes run anterior, superior, right, and the facts ``class_name``,
        ``side``, ``effusion`` (0 to 1) and others.

    Raises:
        UserError: a size or field of view that is not positive.
    """
    size = per_axis(image_size, "image_size")
    shape_rng, tear_rng, bias_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(4))
    name = CLASSES[seed % len(CLASSES)]
    knee = Knee.draw(shape_rng)
    extent = [field_of_view[axis] for axis in TO_BODY] if len(field_of_view) == 3 else field_of_view
    middle = knee.size * np.mean(knee.cruciate, axis=0)
    canvas = Canvas([size[a] for a in TO_BODY], extent, knee.turn, knee.shift, middle, SIGNAL["air"])
    _draw_leg(canvas, knee)
    bones = _draw_joint(canvas, knee)
    _draw_tendons(canvas, knee)
    _draw_cruciates(canvas, knee, bones, name, tear_rng)
    canvas.image *= bias_field(canvas.points, bias_rng, bias_rng.uniform(0.04, 0.1))

    clean, mask = canvas.average()
    noise = noise_deviation(shape_rng.uniform(12, 22), canvas.spacing)
    facts: dict[str, object] = {
        "class_name": name,
        "side": "right" if knee.lateral > 0 else "left",
        "effusion": round(knee.effusion, 3),
        "cartilage_mm": round(knee.cartilage, 2),
        "flexion_degrees": round(knee.flexion, 1),
        "noise": round(noise, 2),
    }
    image = magnitude_noise(clean, noise, noise_rng)
    affine = canvas.affine[:, [*(TO_BODY.index(a) for a in range(3)), 3]]
    return Phantom(image.transpose(TO_ARRAY).copy(), mask.transpose(TO_ARRAY).copy(), affine, facts)


def _draw_leg(canvas: Canvas, knee: Knee) -> None:
    """Skin, fat with strands, muscles behind, above and below, popliteal vessels."""
    box = canvas.everywhere
    p = [v * np.float32(1 / knee.size) for v in canvas.points]
    leg, label = knee.leg(p), MASK_LABELS["soft_tissue"]
    canvas.solid(leg, SIGNAL["skin"], label, box)
    strands = np.clip(2 - knee.strands.distance_to_zero(p), 0, 1)
    canvas.solid(leg + 2, SIGNAL["fat"] - 45 * strands * min(1, 2 / canvas.edge), label, box)
    s = knee.lateral
    muscles: list[tuple[list[Place], Sequence[float]]] = [
        ([(0, 22, 52), (0, 16, 76), (0, 12, 130)], (6, 29, 42)),
        ([(-s * 26, 10, 38), (-s * 28, 8, 90)], (8, 20)),
        ([(s * 27, -42, 0), (s * 25, -42, 34), (s * 22, -40, 120)], (4, 11, 24)),
        ([(-s * 27, -46, -6), (-s * 22, -44, 34), (-s * 16, -40, 120)], (4, 13, 27)),
        ([(s * 18, -38, 26), (s * 17, -45, -16), (s * 16, -42, -100)], (5, 15, 24)),
        ([(-s * 18, -38, 26), (-s * 17, -46, -16), (-s * 16, -43, -100)], (5, 16, 25)),
        ([(-s * 4, -30, -28), (0, -26, -90)], (5, 17)),
        ([(s * 29, 0, -40), (s * 26, 4, -100)], (5, 14)),
    ]
    for nodes, radii in muscles:
        reach = max(radii) + 2
        part, q = knee.block(canvas, np.min(nodes, 0) - reach, np.max(nodes, 0) + reach)
        muscle = smooth_max(chain(q, nodes, radii), leg[part] + 2 + knee.fat, 3)
        canvas.solid(muscle - 1, SIGNAL["fascia"], label, part)
        texture = 1 + 0.07 * knee.texture([q[0], q[1], 0.25 * q[2]])
        canvas.solid(muscle, SIGNAL["muscle"] * texture, MASK_LABELS["muscle"], part)
    for x, y, radius in ((1, -45, 3.6), (5, -52, 4.4)):
        part, tube = canvas.tube(knee.size * np.array([x, y, -90]), knee.size * np.array([x, y, 90]), radius)
        canvas.paint(tube, SIGNAL["vessel"], label, part)


def _draw_joint(canvas: Canvas, knee: Knee) -> Array:
    """Capsule, fluid, menisci, cartilage and bones; returns the signed distance to femur and tibia, everywhere."""
    box = canvas.everywhere
    p = [v * np.float32(1 / knee.size) for v in canvas.points]
    x, y, z = p
    femur, tibia, patella, notch = knee.femur(p), knee.tibia(p), knee.patella(p), knee.notch(p)
    bones, plateau = np.minimum(femur, tibia), knee.plateau(y)

    capsule = np.maximum(smooth_max(notch, bones - 12, 3), np.abs(z - 8) - 26)
    synovium = SIGNAL["capsule"] * (1 + 0.12 * knee.texture(p))
    canvas.solid(capsule, synovium, MASK_LABELS["soft_tissue"], box)
    pouch = ellipsoid(p, (0, 30, 60), (25, 1.5 + 8 * knee.effusion, 16 + 14 * knee.effusion), rotation((8, 0, 0)))
    recess = ellipsoid(p, (-knee.lateral * 18, -42, 8), (9, 2 + 5 * knee.effusion, 14))
    canvas.solid(np.minimum(pouch, recess), SIGNAL["fluid"], MASK_LABELS["fluid"], box)

    femoral = np.maximum(np.maximum(femur, z - 41 - 0.2 * y), 2 - notch)
    tibial = np.maximum(np.maximum(tibia, plateau + 0.5 - z), 6 - np.abs(x))
    layers = (femoral - knee.cartilage, tibial - knee.cartilage, np.maximum(patella - knee.cartilage, y - 40))
    wet = 0.6 + 1.4 * knee.effusion
    for layer in layers:
        canvas.solid(layer - wet, SIGNAL["fluid"], MASK_LABELS["fluid"], box)
    for layer in layers:
        canvas.solid(layer, SIGNAL["cartilage"], MASK_LABELS["cartilage"], box)

    for side in SIDES:  # each a ring that rises outwards, open to the middle; bone and cartilage cut it to a wedge
        radius = np.hypot((x - side * 21) / 18, (y + 8) / 27)
        rise = 2 + 12 * np.clip(radius - 0.45, 0, 0.65)
        ring = smooth_max(plateau + knee.cartilage - 1 - z, z - plateau - knee.cartilage - rise, 1)
        ring = np.maximum(np.maximum(ring, 18 * np.abs(radius - 0.77) - 5.2), 6 - side * x)
        ring = np.maximum(ring, knee.cartilage - 0.5 - femoral)
        canvas.solid(ring, SIGNAL["meniscus"], MASK_LABELS["menisci"], box)

    fibula = chain(p, [(knee.lateral * 30, -24, -20), (knee.lateral * 31, -24, -110)], (10, 6.5))
    marrow = SIGNAL["marrow"] * (1 + 0.07 * knee.texture(p))
    for name, bone in (("fibula", fibula), ("tibia", tibia), ("femur", femur), ("patella", patella)):
        canvas.solid(bone, SIGNAL["cortex"], MASK_LABELS[name], box)
        canvas.solid(bone + 1.8, marrow, MASK_LABELS[name], box)
    return bones


def _draw_tendons(canvas: Canvas, knee: Knee) -> None:
    """Quadriceps tendon above the kneecap, patellar tendon below it: flat black bands."""
    height, label = knee.patella_height, MASK_LABELS["tendons"]
    above: list[Place] = [(0, 43, height + 15), (0, 39, height + 40), (0, 33, height + 110)]
    below: list[Place] = [(0, 45, height - 15), (0, 36, -4), (0, 24.5, -38)]
    for nodes, width in ((above, 13.0), (below, 11.0)):
        box, p = knee.block(canvas, np.min(nodes, 0) - 20, np.max(nodes, 0) + 20)
        flat = [np.maximum(np.abs(p[0]) - width, 0), p[1], p[2]]
        canvas.solid(chain(flat, nodes, 3.2), SIGNAL["ligament"], label, box)


def _draw_cruciates(canvas: Canvas, knee: Knee, bones: Array, name: str, rng: np.random.Generator) -> None:
    """The posterior cruciate ligament, a black arch, and the anterior one, whole or torn."""
    s = knee.lateral
    box, p = knee.block(canvas, (-24, -52, -28), (24, 24, 46))
    outside = -1.5 - bones[box]  # both reach a little into the bone they hold to
    arch = [(-s * 7, -6, 19), (-s * 6, -20, 17), (-s * 4, -32, 6), (-s * 2, -36, -14)]
    posterior = np.maximum(chain(p, arch, (5, 4.6, 4.4, 4)), outside)
    canvas.solid(posterior, SIGNAL["ligament"], MASK_LABELS["posterior_cruciate"], box)

    upper, lower = knee.cruciate
    label = MASK_LABELS["anterior_cruciate"]
    if name == "intact":
        band = np.maximum(chain(p, [upper, lower], LIGAMENT_RADIUS), outside)
        canvas.solid(band, SIGNAL["ligament"], label, box)
        return
    along = (lower - upper) / np.linalg.norm(lower - upper)
    middle = upper + rng.uniform(0.42, 0.58) * (lower - upper)
    swelling = ellipsoid(p, middle, (9, 13, 12)) + 1.5 * knee.wave(p)
    swelling = np.minimum(swelling, chain(p, [upper, lower], LIGAMENT_RADIUS + 0.8))
    brightness = SIGNAL["oedema"] * rng.uniform(0.9, 1.08) * (1 + 0.1 * knee.wave(p))
    canvas.solid(np.maximum(swelling, 0.5 - bones[box]), brightness, label, box)
    for end, towards in ((upper, 1), (lower, -1)):
        length = rng.uniform(9, 14)
        bend = end + towards * 0.5 * length * along + rng.normal(0, 1.5, 3)
        tip = end + towards * length * along + (rng.normal(0, 1), rng.uniform(-2, 2), -rng.uniform(2, 7))
        stump = np.maximum(chain(p, [end, bend, tip], (4.2, 3.2, 1.8)), outside)
        canvas.solid(stump, SIGNAL["stump"], label, box)
