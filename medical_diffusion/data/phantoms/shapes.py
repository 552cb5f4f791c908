"""Random geometric primitives: ellipsoids, boxes and cylinders of random intensity on a smooth background.

They hold no anatomy and need no data at all, so they are the control of any pre-training on synthetic volumes: what a
network learns from samples of a diffusion model counts only as far as it exceeds what it learns from these.

Solids differ in size, pose, intensity and texture; about half have a core of another intensity within a wall, as
organs, vessels and bones do. Large ones are drawn first, so that small ones are seen. Orientation is RAS+, lengths mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medical_diffusion.data.phantoms.mri import WaveField, bias_field, magnitude_noise, noise_deviation
from medical_diffusion.data.phantoms.primitives import Array, Canvas, Phantom, Points, ellipsoid, rotation

MASK_LABELS = {"background": 0, "ellipsoid": 1, "box": 2, "cylinder": 3}
SOLIDS = ("ellipsoid", "box", "cylinder")
VERSION = 1  # raised with every change of what a seed draws
FIELD_OF_VIEW_MM = (160.0, 160.0, 160.0)
SMALLEST_MM, LARGEST_MM = 5.0, 50.0  # half-axes
FEWEST, MOST = 24, 64  # solids
BRIGHTEST = 900.0


@dataclass(frozen=True)
class Solid:
    """One primitive; ``draw`` makes it from a generator.

    Attributes:
        form: one of ``SOLIDS``.
        centre: x, y, z.
        axes: half-axes; a cylinder takes the first as radius and the last as half of its height.
        turn: rotation (3, 3), its columns are the axes.
        wall: thickness around a core, None where it is of one piece.
        values: intensity of the solid (or wall) and of the core.
        texture: strength of the random field in it.
        field: that field.
    """

    form: str
    centre: Array
    axes: Array
    turn: Array
    wall: float | None
    values: tuple[float, float]
    texture: float
    field: WaveField

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Solid:
        """One random solid, its middle within the field of view."""
        size = SMALLEST_MM * (LARGEST_MM / SMALLEST_MM) ** rng.uniform(0.3, 1)
        axes = np.clip(size * rng.uniform(0.4, 1, 3), SMALLEST_MM, None)
        return cls(
            form=SOLIDS[rng.integers(len(SOLIDS))],
            centre=rng.uniform(-0.5, 0.5, 3) * FIELD_OF_VIEW_MM,
            axes=axes,
            turn=rotation(list(rng.uniform(-180, 180, 3))),
            wall=float(rng.uniform(0.15, 0.6) * axes.min()) if rng.uniform() < 0.5 else None,
            values=(rng.uniform(0, BRIGHTEST), rng.uniform(0, BRIGHTEST)),
            texture=max(0.0, rng.uniform(-50, 50)),
            field=WaveField(rng, rng.uniform(10, 40), waves=8),
        )

    @property
    def reach(self) -> float:
        """Distance from the middle beyond which there is nothing of it."""
        return float(np.linalg.norm(self.axes))

    def distance(self, points: Points) -> Array:
        """Signed distance, negative inside."""
        if self.form == "ellipsoid":
            return ellipsoid(points, self.centre, self.axes, self.turn)
        p = [value - np.float32(c) for value, c in zip(points, self.centre, strict=True)]
        p = [sum(np.float32(c) * v for c, v in zip(column, p, strict=True)) for column in self.turn.T]
        if self.form == "cylinder":
            return _block([np.hypot(p[0], p[1]), p[2]], self.axes[[0, 2]])
        return _block(p, self.axes)


def _block(p: Sequence[Array], half: Array) -> Array:
    """Signed distance to ``|p_i| <= half_i``: exact outside the corners and inside."""
    beyond = [np.abs(value) - np.float32(h) for value, h in zip(p, half, strict=True)]
    outside = np.sqrt(sum(np.square(np.maximum(b, 0)) for b in beyond))
    return outside + np.minimum(np.maximum.reduce(beyond), 0)


def shapes_phantom(
    seed: int,
    image_size: int | Sequence[int] = (32, 32, 32),
    field_of_view: Sequence[float] = FIELD_OF_VIEW_MM,
) -> Phantom:
    """One volume of primitives, the same scene for a seed at every size.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: voxels (H, W, D), running right, anterior, superior; an axis of size 1 is one 5 mm slice through the
            middle.
        field_of_view: mm along x, y, z.

    Returns:
        Phantom: image in units from 0 to about 1000, mask with ``MASK_LABELS`` (the form on top), and the facts
        ``ellipsoids``, ``boxes`` and ``cylinders`` (how many), ``background`` (its mean) and ``noise``.

    Raises:
        UserError: a size or field of view that is not positive.
    """
    shape_rng, field_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(3))
    solids = [Solid.draw(shape_rng) for _ in range(shape_rng.integers(FEWEST, MOST + 1))]
    background = float(shape_rng.uniform(50, 500))
    canvas = Canvas(image_size, field_of_view, np.eye(3), np.zeros(3), (0, 0, 0), background)
    hills = WaveField(field_rng, field_rng.uniform(60, 200))
    canvas.image += np.float32(field_rng.uniform(10, 80)) * hills(canvas.points)
    for solid in sorted(solids, key=lambda s: -s.reach):
        _paint(canvas, solid)
    canvas.image *= bias_field(canvas.points, field_rng, field_rng.uniform(0.0, 0.15))

    clean, mask = canvas.average()
    noise = noise_deviation(shape_rng.uniform(3, 12), canvas.spacing)
    image = magnitude_noise(np.maximum(clean, 0), noise, noise_rng)
    counts = {f: sum(solid.form == f for solid in solids) for f in SOLIDS}
    facts: dict[str, object] = {
        "ellipsoids": counts["ellipsoid"],
        "boxes": counts["box"],
        "cylinders": counts["cylinder"],
        "background": round(background, 1),
        "noise": round(noise, 2),
    }
    return Phantom(image, mask, canvas.affine, facts)


def _paint(canvas: Canvas, solid: Solid) -> None:
    """A solid over what is there: its wall, then its core."""
    box = canvas.box([solid.centre], solid.reach)
    points = canvas.within(box)
    if points[0].size == 0:
        return
    distance = solid.distance(points)
    texture = np.float32(solid.texture) * solid.field(points) if solid.texture > 0 else 0.0
    canvas.solid(distance, solid.values[0] + texture, MASK_LABELS[solid.form], box)
    if solid.wall is not None:
        canvas.solid(distance + np.float32(solid.wall), solid.values[1] + texture, MASK_LABELS[solid.form], box)
