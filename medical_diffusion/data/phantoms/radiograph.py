"""Schematic chest radiograph: the chest of the CT phantom from back to front, with a heart of normal or large width.

Each pixel is the line integral of attenuation relative to water, ``L = integral (1 + HU / 1000) dy`` (Beer-Lambert:
exposure is ``exp(-mu L)``), shown as a film is: the denser, the brighter, in a sigmoid of ``L`` (the characteristic
curve of Hurter and Driffield) whose middle and slope automatic exposure sets by body and lung. The patient's right is
on the image's left. A projection shows what lies in the lungs or is denser than water, so only that is drawn; arms
hang, unlike in CT, and bones weigh ``BONE_WEIGHT`` times their HU since radiography uses softer rays.

The class is the width of the heart by that of the chest (cardiothoracic ratio, Danzer 1919: above 0.5 is enlarged).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medical_diffusion.data.phantoms.chest_ct import HU
from medical_diffusion.data.phantoms.primitives import (
    Array,
    Phantom,
    Point,
    Points,
    rotation,
    segment_distance,
    smooth_max,
)
from medical_diffusion.data.phantoms.projection import Rays
from medical_diffusion.data.phantoms.thorax import LEFT, RIGHT, Thorax
from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

VERSION = 1  # raised with every change of what a seed draws
CLASSES = ("normal", "cardiomegaly")
RATIOS = {"normal": (0.42, 0.49), "cardiomegaly": (0.56, 0.65)}
MASK_LABELS = {"background": 0, "body": 1, "left_lung": 2, "right_lung": 3, "heart": 4}
BONE_WEIGHT = 2.0
SOFT_TISSUE = 0.98
GREY_LEVELS = 255
PHOTONS_PER_MM2 = 1000.0  # behind the lungs; few enough that the darkest parts of the film show some noise
ATTENUATION_PER_MM = 0.019  # of water at about 70 keV


def radiograph_phantom(seed: int, image_size: int | Sequence[int] = (64, 64, 1)) -> Phantom:
    """One radiograph; even seeds are normal, odd ones have cardiomegaly.

    Args:
        seed: whole number >= 0; each has its own generator, and the chest of the CT phantom of this seed.
        image_size: pixels (H, W, 1), H rows down and W columns to the right; the same anatomy at every size.

    Returns:
        Phantom: image (H, W, 1) of whole grey values 0 to 255, mask with ``MASK_LABELS`` (the silhouettes of lungs and
        heart), and the facts ``class_name``, ``heart_width_ratio`` and others.

    Raises:
        UserError: a size that is not positive, or a depth other than 1.
    """
    size = per_axis(image_size, "image_size")
    if size[2] != 1:
        raise UserError("a radiograph is an image: image_size must end in 1", size, f"Use {(*size[:2], 1)}")
    shape_rng, film_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in (0, 2, 3))
    name = CLASSES[seed % len(CLASSES)]
    thorax = Thorax.draw(shape_rng, heart_width_ratio=film_rng.uniform(*RATIOS[name]))
    thorax = replace(thorax, turn=rotation([film_rng.uniform(-a, a) for a in (4, 3, 4)]))
    film = _Film(thorax, size[:2], film_rng)
    lungs = film.draw(shape_rng)
    image = film.develop(lungs, film_rng, noise_rng)
    facts: dict[str, object] = {
        "class_name": name,
        "heart_width_ratio": round(thorax.heart_width_ratio, 4),
        "body_width_mm": round(2 * thorax.body[0], 1),
        "lung_height_mm": round(thorax.apex - thorax.dome[RIGHT], 1),
        "field_of_view_mm": round(film.extent, 1),
        "breasts": thorax.breast > 0,
    }
    return Phantom(image[..., None], film.mask(lungs)[..., None], film.affine(), facts)


class _Film:
    """Path lengths of all rays of one exposure, in mm of water."""

    def __init__(self, thorax: Thorax, size: Sequence[int], rng: np.random.Generator) -> None:
        self.thorax, self.size = thorax, tuple(size)
        lungs = thorax.apex - thorax.dome[RIGHT] + thorax.dome_depth
        self.extent = max(1.96 * thorax.body[0], lungs + 52) * rng.uniform(1, 1.05)
        self.centre = (rng.uniform(-5, 5), thorax.apex + 30 + rng.uniform(-6, 6) - self.extent / 2)
        self.rays = Rays(size, (self.extent, self.extent), self.centre, thorax.turn, thorax.shift * (0.3, 1, 0.3))
        self.length = np.zeros(self.rays.shape, np.float32)

    def draw(self, rng: np.random.Generator) -> dict[int, Array]:
        """Add everything; returns the thickness (mm) of each lung."""
        self._soft_tissue()
        lungs = self._lungs()
        self._vessels_in_lungs(lungs, rng)
        self._airways_and_stomach(rng)
        self._spine()
        self._ribs()
        self._shoulders()
        return lungs

    def _add(self, start: Point, end: Point, radius: float, weight: float, onto: Array | None = None) -> None:
        patch, chord = self.rays.tube(start, end, radius)
        (self.length if onto is None else onto)[patch] += weight * chord

    def _soft_tissue(self) -> None:
        """Trunk with neck, shoulders and breasts as one hull, and the heart, denser than the fat around it."""
        t = self.thorax
        width, depth = t.body
        low, high = self.rays.column((0, 0), (width, depth, 115), t.apex - 42)
        parts: list[tuple[Point, Point, Array | None]] = [((0, -8, t.apex + 60), (52, 56, 120), None)]
        for side in (LEFT, RIGHT):
            parts.append(
                ((side * 0.8 * width, -6, t.apex - 32), (0.48 * width, 0.62 * depth, 62), rotation((0, side * 28, 0)))
            )
            if t.breast:
                centre = (side * 0.46 * width, depth - 18, t.heart_centre[2] + 8)
                parts.append((centre, np.array([1.9, 1.1, 1.8]) * t.breast, None))
        for part in parts:
            enter, leave = self.rays.ellipsoid(*part)
            missed = high <= low
            hit = leave > enter
            low = np.where(hit, np.where(missed, enter, np.minimum(low, enter)), low)
            high = np.where(hit, np.where(missed, leave, np.maximum(high, leave)), high)
        self.body = high - low
        enter, leave = self.rays.ellipsoid(t.heart_centre, t.heart_axes, t.heart_turn)
        self.heart = leave - enter
        self.length += SOFT_TISSUE * self.body + (HU["heart"] - HU["mediastinal_fat"]) / 1000 * self.heart

    def _lungs(self) -> dict[int, Array]:
        """Lungs, with the great vessels that bulge into them taken out."""
        t, lungs = self.thorax, {}
        vessels = [tube for tube in t.great_vessels() if max(abs(tube[0][0]), abs(tube[1][0])) > 12]

        def distance(p: Points) -> Array:
            d = t.lung(p, side, t.rib_cage(p))
            highest, lowest = p[2].max((0, 2)), p[2].min((0, 2))  # of each row, from the head down
            for start, end, radius in vessels:
                bottom, top = min(start[2], end[2]) - radius - 8, max(start[2], end[2]) + radius + 8
                near = np.s_[:, int((lowest > top).sum()) : int((highest > bottom).sum())]
                d[near] = smooth_max(d[near], radius + 2 - segment_distance([v[near] for v in p], start, end), 5)
            return d

        for side in (LEFT, RIGHT):
            corners = np.array(np.meshgrid(*zip(*t.lung_block(side), strict=True))).reshape(3, -1).T
            patch, inside, heights = self.rays.sampled(distance, corners)
            lungs[side] = np.zeros_like(self.length)
            lungs[side][patch] = inside.sum(0)
            hu = t.lung_hu - t.lung_gradient * (heights[:, None, None] - t.shift[1])
            self.length[patch] += (inside * (hu / 1000)).sum(0)
        return lungs

    def _vessels_in_lungs(self, lungs: dict[int, Array], rng: np.random.Generator) -> None:
        """A tree from each hilum over lobar branches to random points, thinner at every branching."""
        t, tree = self.thorax, np.zeros_like(self.length)
        for side in (LEFT, RIGHT):
            hilum = t.carina + np.array([side * 34, 2, -28 if side == RIGHT else -20])
            ends = t.random_points_in_lung(rng, side, count=20, margin=6)
            lobes = hilum + 0.4 * (ends[:6] - hilum)
            for lobe in lobes:
                self._add(hilum, lobe, 5.5, 1.5, tree)
            for end in ends:
                lobe = lobes[np.argmin(np.linalg.norm(lobes - end, axis=1))]
                bend = 0.5 * (lobe + end) + rng.normal(0, 5, 3)
                self._add(lobe, bend, 3.0, 1.5, tree)
                self._add(bend, end, 1.8, 1.4, tree)
        shown = np.clip((lungs[LEFT] + lungs[RIGHT]) / 90, 0, 1)  # not in front of the heart, where lung is thin
        self.length += np.minimum(tree, 22) * shown * -t.lung_hu / 1000

    def _airways_and_stomach(self, rng: np.random.Generator) -> None:
        t, carina = self.thorax, self.thorax.carina
        self._add((0, carina[1] + 4, t.apex + 80), carina, 8.5, HU["airway"] / 1000)
        for side in (LEFT, RIGHT):
            self._add(carina, carina + np.array([side * 34, 2, -26]), 5.5, 0.7 * HU["airway"] / 1000)
        if rng.uniform() < 0.6:
            a, b = t.cavity
            enter, leave = self.rays.ellipsoid((-0.46 * a, 0.15 * b, t.dome[LEFT] - 24), (24, 20, rng.uniform(9, 14)))
            self.length += HU["air"] / 1000 * (leave - enter)

    def _spine(self) -> None:
        """Vertebral bodies with lighter discs, pedicles, transverse and spinous processes."""
        t, soft = self.thorax, lambda d: np.clip(0.5 - d / self.rays.pixel, 0, 1)
        x, _, z = self.rays.at(float(t.shift[1] + t.spine_y(0.0)))
        level, half = t.within_vertebra(z), t.vertebra_height / 2
        waist = 17 - 2.5 * (1 - np.square(level / half))
        body = 26 * np.sqrt(np.maximum(1 - np.square(x / waist), 0)) * (0.02 + 0.22 * soft(level - half + 2.5))
        plates = 5 * soft(np.abs(x) - waist) * soft(np.abs(level - half + 3.5) - 1.2)
        sides = 5 * soft(np.abs(np.abs(x) - waist + 1) - 1.2) * soft(level - half + 3)
        pedicles = 6 * soft(np.hypot((np.abs(x) - 11) / 0.8, level) - 3.8)
        spinous = 8 * soft(np.hypot(x / 0.45, level) - 6.5)
        across = 6 * soft(np.maximum(np.abs(x) - 33, 14 - np.abs(x))) * soft(np.abs(level - 2) - 4)
        below_skull = np.clip((t.apex + 60 - z) / 20, 0, 1)
        self.length += 0.75 * BONE_WEIGHT * (body + plates + sides + pedicles + spinous + across) * below_skull

    def _ribs(self, samples: int = 3) -> None:
        """Back and front of each rib: the rays' way through the chest wall where bone is, the cartilage left out."""
        t, (a, b) = self.thorax, self.thorax.cavity
        outer = self.rays.column((0, 2), (a + 9, b + 9, 112), t.apex - 92)
        inner = self.rays.column((0, 2), (a + 2, b + 2, 105), t.apex - 92)
        total = np.zeros_like(self.length)
        for wall in range(2):
            way = np.abs(outer[wall] - inner[wall])
            for share in (np.arange(samples) + 0.5) / samples:
                x, y, z = self.rays.at(outer[wall] + np.float32(share) * (inner[wall] - outer[wall]))
                across = t.across_rib(y, z)
                bone = np.clip(0.5 - (across - 6.2) / self.rays.pixel, 0, 1)
                edge = np.clip(0.5 - np.abs(across - 5.2) / 2, 0, 0.5)
                bone *= np.clip((0.55 * b - y) / 12, 0, 1) * np.clip((np.abs(x) - 16) / 6, 0, 1)
                total += (
                    (1.1 * bone + 0.8 * edge) * np.minimum(way, 26) / samples * np.clip((t.apex + 12 - z) / 4, 0, 1)
                )
        self.length += BONE_WEIGHT * HU["cortex"] / 1000 * total

    def _shoulders(self) -> None:
        """Clavicles, scapulae, heads and shafts of the humeri."""
        t, (a, b), width = self.thorax, self.thorax.cavity, self.thorax.body[0]
        bone = BONE_WEIGHT * HU["cortex"] / 1000
        for side in (LEFT, RIGHT):
            sternal = (side * 15, 0.7 * b, t.apex - 34)
            middle = (side * 0.45 * width, 0.6 * b, t.apex - 16)
            tip = (side * 0.92 * width, -0.1 * b, t.apex + 6)
            self._add(sternal, middle, 6.0, 1.1 * bone)
            self._add(middle, tip, 5.5, 1.1 * bone)
            glenoid = (side * 0.97 * width, -6, t.apex - 16)
            enter, leave = self.rays.ellipsoid(glenoid, (20, 20, 23))
            self.length += 0.28 * bone * (leave - enter)
            self._add(glenoid, (side * 1.12 * width, -6, t.apex - 140), 11, 0.35 * bone)
            blade = (side * 0.96 * a, -0.8 * b - 6, t.apex - 66)
            enter, leave = self.rays.ellipsoid(blade, (26, 5, 58), rotation((0, side * 12, side * 50)))
            self.length += 0.22 * bone * (leave - enter)

    def develop(self, lungs: dict[int, Array], rng: np.random.Generator, noise_rng: np.random.Generator) -> Array:
        """Grey values (H, W): exposure set by body and lung, film curve, average of the rays, quantum noise."""
        t = self.thorax
        dense = 2 * t.body[1] * SOFT_TISSUE
        clear = dense + 1.7 * t.cavity[1] * t.lung_hu / 1000
        middle = clear + (dense - clear) * rng.uniform(0.42, 0.52)
        slope = rng.uniform(3.0, 3.6) / (dense - clear)
        grey = self.rays.average(1 / (1 + np.exp(-slope * (self.length - middle))))
        length = self.rays.average(self.length)
        area = float(np.prod(self.rays.steps * self.rays.factors))
        photons = PHOTONS_PER_MM2 * area * np.exp(-ATTENUATION_PER_MM * np.maximum(length - clear, -clear))
        deviation = grey * (1 - grey) * slope / ATTENUATION_PER_MM / np.sqrt(photons)
        noisy = grey + np.minimum(deviation, 0.04) * noise_rng.standard_normal(grey.shape, dtype=np.float32)
        return np.rint(np.clip(GREY_LEVELS * noisy, 0, GREY_LEVELS)).astype(np.float32)

    def mask(self, lungs: dict[int, Array]) -> Array:
        """Silhouettes (H, W): body, lungs where they are thicker than 10 mm, the heart above all."""
        mask = np.zeros(self.size, np.uint8)
        parts = (
            ("body", self.body, 10),
            ("left_lung", lungs[LEFT], 10),
            ("right_lung", lungs[RIGHT], 10),
            ("heart", self.heart, 0),
        )
        for label, thickness, least in parts:
            mask[self.rays.average((thickness > least).astype(np.float32)) >= 0.5] = MASK_LABELS[label]
        return mask

    def affine(self) -> Array:
        """Rows run down, columns to the patient's left, the single slice along the rays (RAS+ world, mm)."""
        rows, columns = self.rays.steps * self.rays.factors
        matrix = np.zeros((4, 4))
        matrix[2, 0], matrix[0, 1], matrix[1, 2], matrix[3, 3] = -rows, -columns, 2 * self.thorax.body[1], 1
        matrix[0, 3] = self.centre[0] + self.extent / 2 - columns / 2
        matrix[2, 3] = self.centre[1] + self.extent / 2 - rows / 2
        return matrix
