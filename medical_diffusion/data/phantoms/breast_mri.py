"""Schematic T1-weighted breasts of a prone patient, without fat saturation: bright fat, dark fibroglandular tissue.

Fat is brightest; fibroglandular tissue, skin and muscle are dark grey, lung and air nearly black. Fibroglandular tissue
fills the part of each breast where a random field, raised behind the nipple, exceeds a threshold; the threshold is
set so that it fills the share of the breast that the drawn density asks for (within the layer of fat under the skin and
before the chest wall). Ducts branch backwards from the nipple, thin septa (Cooper's ligaments) cross the fat.

Body coordinates in mm: x to the right, y anterior (a prone patient's breasts hang that way), z superior, origin on the
breastbone's surface. Orientation is RAS+.
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
    Place,
    Points,
    ellipsoid,
    rotation,
    smooth_max,
    smooth_min,
)

MASK_LABELS = {
    "background": 0,
    "breast": 1,  # fat and skin of the breasts; the breast mask of the data set is this and fibroglandular
    "fibroglandular": 2,
    "chest_wall": 3,
    "lungs": 4,
    "heart": 5,
    "trunk_fat": 6,  # and its skin, beside the breasts
}
VERSION = 1  # raised with every change of what a seed draws
SIGNAL = {
    "air": 0,
    "skin": 420,
    "fat": 830,
    "fibroglandular": 330,
    "muscle": 290,
    "bone": 120,
    "marrow": 560,
    "lung": 45,
    "heart": 250,
    "blood": 150,
    "nipple": 380,
}
FIELD_OF_VIEW_MM = (338.0, 169.0, 96.0)  # two halves of 169 mm, 32 slices of 3 mm
SIDES = (-1, 1)  # sign of x: left, right
DENSITIES = {"a": (0.04, 0.09), "b": (0.11, 0.2), "c": (0.23, 0.34), "d": (0.38, 0.5)}  # share of the breast
SHARE_OF_PATIENTS = (0.15, 0.35, 0.35, 0.15)  # of each density
RIB_PERIOD_MM = 30.0
SEPTUM_MM = 1.0  # thickness
DUCTS = 9  # of each breast


@dataclass(frozen=True)
class Breast:
    """One breast, in mm: an ellipsoid whose front leans outwards and down to the nipple."""

    side: int
    centre: Place
    axes: Place
    droop: float  # how far the nipple lies below the middle
    fat: float  # thickness of the layer under the skin
    density: float
    gland: WaveField
    lobules: WaveField  # finer than the gland, lets fat into it
    septa: WaveField

    @property
    def lean(self) -> float:
        """How far the nipple lies to the side of the middle, with its sign."""
        return 0.1 * self.side * self.axes[0]

    @property
    def nipple(self) -> Array:
        """The front of the breast."""
        return np.add(self.centre, (self.lean, self.axes[1], -self.droop))

    def box(self, canvas: Canvas) -> Box:
        """Index range that holds the breast and what joins it to the trunk."""
        centre, axes = np.array(self.centre), np.array(self.axes) + 12
        return canvas.region(centre - axes - (0, 0, self.droop), centre + axes)

    def surface(self, p: Points) -> Array:
        """Skin: signed distance."""
        ahead = np.clip((p[1] - self.centre[1]) * (1 / self.axes[1]), 0, 1)
        return ellipsoid([p[0] - self.lean * ahead, p[1], p[2] + self.droop * ahead], self.centre, self.axes)

    def gland_level(self, p: Points) -> Array:
        """Highest where fibroglandular tissue is most likely: in a cone from the nipple to the middle of the base."""
        back = np.clip((self.centre[1] + self.axes[1] - p[1]) * (1 / self.axes[1]), 0, 1.3)
        x = (p[0] - self.centre[0] - self.lean * (1 - back)) * (1 / self.axes[0])
        z = (p[2] - self.centre[2] + self.droop * (1 - back)) * (1 / self.axes[2])
        wide = 0.12 + 0.62 * np.minimum(back, 0.75)
        away = (np.square(x) + np.square(z)) / np.square(wide)
        field = self.gland(p) + 0.5 * self.lobules(p)
        return field - 0.8 * away - 13 * np.square(np.maximum(back - 0.75, 0))


@dataclass(frozen=True)
class Chest:
    """Dimensions in mm of one phantom; ``draw`` makes them from a generator."""

    turn: Array
    shift: Array
    trunk: tuple[float, float]  # half width, half depth
    fat: float
    muscle: float
    category: str
    skin: float
    rib_phase: float
    breasts: tuple[Breast, Breast]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Chest:
        """One random chest; both breasts have about the size and density of each other."""
        u = rng.uniform
        category = str(rng.choice(list(DENSITIES), p=SHARE_OF_PATIENTS))
        density, size = u(*DENSITIES[category]), u(0.84, 1.12)
        trunk = (u(148, 164), u(92, 112))
        fat = u(5, 12)
        distance = u(74, 82)

        def breast(side: int) -> Breast:
            scale = size * u(0.94, 1.06)
            axes = (scale * u(58, 64), scale * u(70, 84), scale * u(62, 72))
            base = -0.5 * trunk[1] * (distance / trunk[0]) ** 2 - 2
            return Breast(
                side=side,
                centre=(side * distance, base, u(-6, 6)),
                axes=axes,
                droop=u(0, 14),
                fat=u(4, 9) * (1.4 - density),
                density=float(np.clip(density * u(0.85, 1.15), 0.03, 0.55)),
                gland=WaveField(rng, u(22, 32), waves=24),
                lobules=WaveField(rng, 11.0, waves=16),
                septa=WaveField(rng, 26.0, waves=16),
            )

        return cls(
            turn=rotation((u(-3, 3), u(-3, 3), u(-3, 3))),
            shift=np.array([u(-4, 4), u(-24, -14), u(-5, 5)]),
            trunk=trunk,
            fat=fat,
            muscle=u(7, 14),
            category=category,
            skin=u(1.6, 2.4),
            rib_phase=u(0, 1),
            breasts=(breast(SIDES[0]), breast(SIDES[1])),
        )

    def wall(self, p: Points) -> Array:
        """Skin of the trunk without breasts, the same at every height: signed distance."""
        a, b = self.trunk
        return ellipsoid([p[0], p[1], np.zeros_like(p[2])], (0, -b, 0), (a, b, 1))


def breast_mri_phantom(
    seed: int,
    image_size: int | Sequence[int] = (64, 32, 16),
    field_of_view: Sequence[float] = FIELD_OF_VIEW_MM,
) -> Phantom:
    """Both breasts of one patient, the same anatomy for a seed at every size.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: voxels (2H, W, D), running right, anterior, superior: each half along the first axis holds one
            breast. An axis of size 1 is one 5 mm slice at the height of the nipples.
        field_of_view: mm along x, y, z.

    Returns:
        Phantom: image in units from 0 to about 1000, mask with ``MASK_LABELS`` (the breast mask is ``breast`` and
        ``fibroglandular``), and the facts ``density`` (the share of each breast that fibroglandular tissue fills, left
        and right), ``density_category`` (a to d, from fatty to extremely dense) and others.

    Raises:
        UserError: a size or field of view that is not positive.
    """
    shape_rng, sample_rng, bias_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(4))
    chest = Chest.draw(shape_rng)
    canvas = Canvas(image_size, field_of_view, chest.turn, chest.shift, (0, 0, 0), SIGNAL["air"])
    wall = chest.wall(canvas.points)
    _draw_skin_and_fat(canvas, chest, wall)
    for breast in chest.breasts:
        _draw_inside(canvas, chest, breast, wall, sample_rng)
    _draw_chest(canvas, chest, wall)
    canvas.image *= bias_field(canvas.points, bias_rng, bias_rng.uniform(0.05, 0.14))

    clean, mask = canvas.average()
    noise = noise_deviation(shape_rng.uniform(14, 26), canvas.spacing)
    facts: dict[str, object] = {
        "density": {name: round(b.density, 3) for name, b in zip(("left", "right"), chest.breasts, strict=True)},
        "density_category": chest.category,
        "breast_depth_mm": round(float(np.mean([b.axes[1] for b in chest.breasts])), 1),
        "skin_mm": round(chest.skin, 2),
        "noise": round(noise, 2),
    }
    return Phantom(magnitude_noise(clean, noise, noise_rng), mask, canvas.affine, facts)


def _draw_skin_and_fat(canvas: Canvas, chest: Chest, wall: Array) -> None:
    """Skin around trunk and breasts with fat within; nipples."""
    outline = wall.copy()
    for breast in chest.breasts:
        box = breast.box(canvas)
        outline[box] = smooth_min(outline[box], breast.surface(canvas.within(box)), 12)
        part, nipple = canvas.ball(np.add(breast.nipple, (0, 1, 0)), 6)
        canvas.paint(nipple, SIGNAL["nipple"], MASK_LABELS["breast"], part)
    canvas.solid(outline, SIGNAL["skin"], MASK_LABELS["trunk_fat"], canvas.everywhere)
    canvas.solid(outline + chest.skin, SIGNAL["fat"], MASK_LABELS["trunk_fat"], canvas.everywhere)
    for breast in chest.breasts:
        box = breast.box(canvas)
        within = np.maximum(outline[box], breast.surface(canvas.within(box)) - 4)
        np.copyto(canvas.mask[box], np.uint8(MASK_LABELS["breast"]), where=within < 0)


def _draw_inside(canvas: Canvas, chest: Chest, breast: Breast, wall: Array, rng: np.random.Generator) -> None:
    """Septa, fibroglandular tissue of the drawn density, ducts."""
    box = breast.box(canvas)
    p = canvas.within(box)
    inside = smooth_max(breast.surface(p), -wall[box] - chest.fat, 6)
    septa = np.maximum(breast.septa.distance_to_zero(p) - canvas.edge / 2, inside + 2)
    opacity = min(1, SEPTUM_MM / canvas.edge)
    canvas.paint(opacity * canvas.coverage(septa), SIGNAL["skin"], MASK_LABELS["breast"], box)

    label, threshold = MASK_LABELS["fibroglandular"], _gland_threshold(chest, breast, rng)
    gland = smooth_max((threshold - breast.gland_level(p)) * (28 / (2 * np.pi)), inside + breast.fat, 3)
    canvas.solid(gland, SIGNAL["fibroglandular"] * (1 + 0.12 * breast.lobules(p)), label, box)

    tree = np.zeros_like(canvas.image)
    width, depth, height = breast.axes
    behind = breast.nipple - (0, 3, 0)
    for _ in range(DUCTS):
        away = (rng.normal(0, 0.24 * width), -depth * rng.uniform(0.4, 0.62), rng.normal(0, 0.24 * height))
        end = behind + away
        bend = 0.5 * (behind + end) + rng.normal(0, 3, 3)
        ways = [(behind, bend, 1.4), (bend, end, 1.1)]
        ways += [(bend, end + rng.normal(0, 9, 3), 0.9) for _ in range(2)]
        for start, stop, radius in ways:
            part, tube = canvas.tube(start, stop, radius)
            np.maximum(tree[part], tube, out=tree[part])
    canvas.paint(tree[box] * canvas.coverage(inside + 2), SIGNAL["fibroglandular"], label, box)


def _gland_threshold(chest: Chest, breast: Breast, rng: np.random.Generator) -> float:
    """The level above which lies the drawn share of the breast, found at random points, so alike at every size."""
    centre, axes = np.array(breast.centre), np.array(breast.axes)
    tried = rng.uniform(centre - axes, centre + axes, (6000, 3)).T
    depth = smooth_max(breast.surface(tried), -chest.wall(tried) - chest.fat, 6)
    room = depth < -breast.fat
    levels = np.sort(breast.gland_level(tried)[room])[::-1]
    wanted = int(breast.density * (depth < 0).sum())
    return float(levels[min(wanted, len(levels) - 1)])


def _draw_chest(canvas: Canvas, chest: Chest, wall: Array) -> None:
    """Muscle over ribs and breastbone, lungs and heart behind them."""
    a, b = chest.trunk
    box = canvas.region((-a, -2 * b, canvas.height[0]), (a, 2, canvas.height[1]))
    p, label = canvas.within(box), MASK_LABELS["chest_wall"]
    depth, x = wall[box] + chest.fat, np.abs(p[0])
    canvas.solid(depth, SIGNAL["muscle"], label, box)
    cage = depth + chest.muscle * (1 - np.exp(-np.square(x / 17)))  # no pectoral muscle over the breastbone
    across = np.abs(((p[2] + 0.25 * x) / RIB_PERIOD_MM + chest.rib_phase) % 1 - 0.5) * RIB_PERIOD_MM
    rib = np.maximum(np.hypot(cage + 5.5, np.maximum(across - 3.5, 0)) - 5, 24 - x)
    bone = np.minimum(rib, smooth_max(np.abs(cage + 6) - 5.5, x - 17, 3))
    pleura = smooth_max(cage + 13, 4 - x, 6)
    canvas.solid(np.abs(pleura) - 1.5, SIGNAL["fat"], label, box)
    canvas.solid(bone, SIGNAL["bone"], label, box)
    canvas.solid(bone + 1.8, SIGNAL["marrow"], label, box)
    canvas.solid(pleura + 1.5, SIGNAL["lung"], MASK_LABELS["lungs"], box)
    heart = ellipsoid(p, (-0.2 * a, -0.95 * b, -10), (0.42 * a, 0.55 * b, 62), rotation((0, 0, 25)))
    heart = smooth_max(heart, pleura + 3, 5)
    canvas.solid(heart - 2.5, SIGNAL["fat"], MASK_LABELS["heart"], box)
    canvas.solid(heart, SIGNAL["heart"], MASK_LABELS["heart"], box)
    canvas.solid(heart + 11, SIGNAL["blood"], MASK_LABELS["heart"], box)
