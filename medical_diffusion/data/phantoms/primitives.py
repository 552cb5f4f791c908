"""Shared drawing tools of the phantoms: signed distances in millimetres, painted onto a grid with soft edges.

A structure is a signed distance ``d`` (negative inside). The share of a voxel of width ``w`` that it fills is close to
``clip(1/2 - d/w, 0, 1)``, so an edge is one voxel wide and never aliases (partial volume). A tube or sphere thinner
than the voxel is drawn as wide as the voxel with its opacity lowered by the ratio of the cross-sections (volumes): its
mean intensity is kept. Voxels above 5 mm, or much longer along one axis, are drawn on a finer grid and averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

Array = np.ndarray
Point = Sequence[float] | Array  # x, y, z in mm
Points = Sequence[Array] | Array  # x, y, z of any common shape, in mm
Place = tuple[float, float, float]  # x, y, z in mm
Box = tuple[slice, slice, slice]

FINEST_NEEDED_MM = 5.0  # drawing finer than this changes nothing that a coarse voxel shows
SLICE_THICKNESS_MM = 5.0  # of an axis of size 1


@dataclass(frozen=True)
class Phantom:
    """One phantom: ``image`` (H, W, D) float32, ``mask`` (H, W, D) uint8, RAS+ ``affine`` (4, 4) in mm, and ``facts``
    about what was drawn (plain numbers and lists, ready for JSON)."""

    image: Array
    mask: Array
    affine: Array
    facts: dict[str, object] = field(default_factory=dict)


def rotation(degrees: Sequence[float]) -> Array:
    """Rotation matrix (3, 3) about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def smooth_max(a: Array, b: Array, radius: float) -> Array:
    """Intersection of two signed distances whose common edge is rounded over about ``radius`` mm (polynomial)."""
    return np.maximum(a, b) + np.square(np.maximum(radius - np.abs(a - b), 0)) / (4 * radius)


def smooth_min(a: Array, b: Array, radius: float) -> Array:
    """Union of two signed distances whose common notch is filled over about ``radius`` mm (polynomial)."""
    return -smooth_max(-a, -b, radius)


def _squares(x: Array, y: Array, z: Array) -> Array:
    return x * x + y * y + z * z


def ellipsoid(points: Points, centre: Point, axes: Point, turn: Array | None = None) -> Array:
    """First-order signed distance to an ellipsoid: ``(rho - 1) / |grad rho|``; columns of ``turn`` are its axes."""
    p = [value - float(c) for value, c in zip(points, centre, strict=True)]
    if turn is not None:
        p = [float(c[0]) * p[0] + float(c[1]) * p[1] + float(c[2]) * p[2] for c in turn.T]
    u = [value * (1 / float(a)) for value, a in zip(p, axes, strict=True)]
    rho = np.sqrt(_squares(*u) + 1e-6)
    return (rho - 1) * rho / np.sqrt(_squares(*(v * (1 / float(a)) for v, a in zip(u, axes, strict=True))) + 1e-12)


def domed_column(points: Points, centre: Point, axes: Point, top: float, boxy: bool = False) -> Array:
    """Signed distance to an upright column (``axes[:2]``) that closes in a dome of height ``axes[2]`` above
    ``z = top``; it is open downwards. ``boxy`` takes a superellipse of exponent 2.5 instead of an ellipse."""
    u = [
        np.abs(points[0] - float(centre[0])) * (1 / float(axes[0])),
        np.abs(points[1] - float(centre[1])) * (1 / float(axes[1])),
        np.maximum(points[2] - float(top), 0) * (1 / float(axes[2])),
    ]
    steep = [v * np.sqrt(v) for v in u] if boxy else u
    rho = steep[0] * u[0] + steep[1] * u[1] + steep[2] * u[2] + 1e-6
    rho = np.exp(0.4 * np.log(rho)) if boxy else np.sqrt(rho)
    slope = np.sqrt(_squares(*(s * (1 / float(a)) for s, a in zip(steep, axes, strict=True))) + 1e-12)
    return (rho - 1) * (rho * np.sqrt(rho) if boxy else rho) / slope


def segment_distance(points: Points, start: Point, end: Point) -> Array:
    """Distance to the line segment from ``start`` to ``end``."""
    along = [float(e) - float(s) for s, e in zip(start, end, strict=True)]
    length = sum(a * a for a in along)
    x, y, z = (value - float(s) for value, s in zip(points, start, strict=True))
    squared = _squares(x, y, z)
    if length > 0:
        inner = along[0] * x + along[1] * y + along[2] * z
        t = np.clip(inner, 0, length) / length
        squared += t * (length * t - 2 * inner)
    return np.sqrt(np.maximum(squared, 0))


def chain(points: Points, nodes: Sequence[Point], radii: float | Sequence[float] | Array) -> Array:
    """Signed distance to a chain of round segments through ``nodes``; its radius runs from one of ``radii`` to the
    next (first order: slightly off where it changes fast)."""
    widths = np.broadcast_to(np.asarray(radii, float), len(nodes))
    nearest: Array | None = None
    for (start, end), (r, s) in zip(itertools.pairwise(nodes), itertools.pairwise(widths), strict=True):
        distance = segment_distance(points, start, end) - float(r)
        if r != s:
            along = np.subtract(end, start, dtype=float)
            inner = sum(float(a) * (v - float(o)) for a, v, o in zip(along, points, start, strict=True))
            distance = distance - float(s - r) * np.clip(inner / float(along @ along), 0, 1)
        nearest = distance if nearest is None else np.minimum(nearest, distance)
    if nearest is None:
        raise ValueError("a chain needs two nodes or more")
    return nearest


class Canvas:
    """A grid in body coordinates with an image and a mask to paint on.

    Args:
        image_size: voxels (H, W, D).
        field_of_view: mm (x, y, z); along an axis of size 1 it is replaced by one slice of 5 mm.
        turn, shift: pose of the body, ``world = turn @ body + shift`` (mm).
        slice_centre: body point through which an axis of size 1 cuts.
        background: value of the empty image.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        field_of_view: Sequence[float],
        turn: Array,
        shift: Array,
        slice_centre: Point,
        background: float,
    ) -> None:
        self.image_size = per_axis(image_size, "image_size")
        if len(field_of_view) != 3 or not all(np.isfinite(f) and f > 0 for f in field_of_view):
            raise UserError("field_of_view must be three positive lengths in mm", field_of_view)
        self.turn, self.shift = turn, shift
        size = np.array(self.image_size)
        self.spacing = np.where(size == 1, SLICE_THICKNESS_MM, np.array(field_of_view, float) / size)
        centre = np.where(size == 1, turn @ np.asarray(slice_centre, float) + shift, 0.0)
        self.affine = np.diag([*self.spacing, 1.0])
        self.affine[:3, 3] = centre - self.spacing * (size - 1) / 2
        limit = min(FINEST_NEEDED_MM, 1.5 * float(self.spacing.min()))
        self.factors = tuple(int(f) for f in np.ceil(self.spacing / limit - 1e-6))
        fine = self.spacing / self.factors
        self.edge = float(fine.max())
        self._fine, self._first = fine, centre - fine * (size * self.factors - 1) / 2
        steps = (np.arange(n) for n in size * self.factors)
        axes = [first - s + step * n for first, s, step, n in zip(self._first, shift, fine, steps, strict=True)]
        world = np.meshgrid(*axes, indexing="ij", sparse=True)
        self.points = [sum(turn[k, i] * world[k] for k in range(3)).astype(np.float32) for i in range(3)]
        self.height = (float(self.points[2].min()), float(self.points[2].max()))  # lowest and highest body z
        self.image = np.full(self.points[0].shape, background, np.float32)
        self.mask = np.zeros(self.points[0].shape, np.uint8)

    @property
    def everywhere(self) -> Box:
        """Index range of the whole grid."""
        h, w, d = self.image.shape
        return slice(0, h), slice(0, w), slice(0, d)

    def box(self, points: Sequence[Point], margin: float) -> Box:
        """Index range that holds the body points and everything within ``margin`` mm of them."""
        index = (np.asarray(points, float) @ self.turn.T + (self.shift - self._first)) / self._fine
        reach = (margin + self.edge) / self._fine
        low, high = index.min(0) - reach, index.max(0) + reach + 1
        return tuple(slice(max(int(a), 0), max(int(b) + 1, 0)) for a, b in zip(low, high, strict=True))  # type: ignore[return-value]

    def region(self, low: Point, high: Point) -> Box:
        """Index range that holds the block of body points between ``low`` and ``high``."""
        return self.box(list(itertools.product(*zip(low, high, strict=True))), 0)

    def within(self, box: Box) -> list[Array]:
        """Body coordinates of a box."""
        return [p[box] for p in self.points]

    def coverage(self, distance: Array) -> Array:
        """Share of each voxel that a structure fills, from its signed distance."""
        return np.clip(0.5 - distance / self.edge, 0, 1)

    def ball(self, centre: Point, radius: float) -> tuple[Box, Array]:
        """Box and coverage of a sphere of any size, also one smaller than a voxel."""
        box, drawn = self.box([centre], radius), max(radius, self.edge / 2)
        distance = segment_distance(self.within(box), centre, centre) - drawn
        return box, self.coverage(distance) * (radius / drawn) ** 3

    def tube(self, start: Point, end: Point, radius: float) -> tuple[Box, Array]:
        """Box and coverage of a round tube of any width, also one thinner than a voxel."""
        drawn = max(radius, self.edge / 2)
        box = self.box([start, end], drawn)
        return box, self.coverage(segment_distance(self.within(box), start, end) - drawn) * (radius / drawn) ** 2

    def paint(self, coverage: Array, value: float | Array, label: int, box: Box) -> None:
        """Lay a structure over what is there; the mask takes its label where it fills half of a voxel or more."""
        image = self.image[box]
        image += coverage * (value - image)
        np.copyto(self.mask[box], np.uint8(label), where=coverage >= 0.5)

    def solid(self, distance: Array, value: float | Array, label: int, box: Box) -> None:
        """Paint a structure given by its signed distance."""
        self.paint(self.coverage(distance), value, label, box)

    def average(self) -> tuple[Array, Array]:
        """Image and mask at ``image_size``: the mean of the fine voxels and their most frequent label."""
        i, j, k = self.factors
        steps = [np.s_[a::i, b::j, c::k] for a, b, c in np.ndindex(i, j, k)]
        image = np.asarray(sum(self.image[step] for step in steps)) / np.float32(len(steps))
        parts = [self.mask[step] for step in steps]
        labels = np.flatnonzero(np.bincount(self.mask.ravel())).astype(np.uint8)
        counts = np.stack([sum((part == label).astype(np.uint16) for part in parts) for label in labels])
        return image, labels[counts.argmax(0)]

    def voxel(self, point: Point) -> tuple[int, int, int] | None:
        """Index of the voxel that holds a body point, None outside the image."""
        world = self.turn @ np.asarray(point, float) + self.shift
        index = np.round((world - self.affine[:3, 3]) / self.spacing).astype(int)
        return tuple(int(i) for i in index) if ((index >= 0) & (index < self.image_size)).all() else None  # type: ignore[return-value]
