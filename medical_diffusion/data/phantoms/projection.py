"""Parallel X-rays through drawn structures: the length (mm) that each ray of a picture runs inside of them.

A ray is ``p(t) = p0 + t d`` in body coordinates (mm), ``t`` its height above the world's plane y = 0. Closed surfaces
are intersected exactly: an ellipsoid by its quadratic equation, a domed column by its explicit surface. A body without
closed form (a lung) is sampled along the rays; there the edge is as wide as a sample is across the surface
(``sqrt(pixel^2 + (n_y step)^2)``), which makes the sum over a plane surface exact, so that no contour lines appear. Its
distance is smooth, so it is found for every second ray or so and interpolated.
Rays are drawn at most ``FINEST_MM`` apart and the picture is averaged from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from medical_diffusion.data.phantoms.primitives import Array, Point, Points

FINEST_MM = 3.2  # rays need not be closer than this
STEP_MM = 8.0  # between the samples along a ray
SMOOTH_MM = 5.0  # between the rays for which a smooth distance is found
Patch = tuple[slice, slice]
Interval = tuple[Array, Array]  # where rays enter and leave; equal where they miss


class Rays:
    """Rays along the world's y axis through a picture whose rows run down and whose columns run to the body's left.

    Args:
        size: pixels (rows, columns).
        extent: mm (height, width) of the picture.
        centre: world x, z of its middle.
        turn, shift: pose of the body, ``world = turn @ body + shift`` (mm).
    """

    def __init__(
        self, size: Sequence[int], extent: Sequence[float], centre: Sequence[float], turn: Array, shift: Array
    ) -> None:
        self.turn, self.shift = turn, shift
        spacing = np.array(extent, float) / size
        self.factors = np.ceil(spacing / FINEST_MM - 1e-6).astype(int)
        self.steps = spacing / self.factors
        self.pixel = float(self.steps.max())
        self.first = np.array([centre[1] + extent[0] / 2, centre[0] + extent[1] / 2]) - self.steps / 2
        rows, columns = (
            a - s * np.arange(n) for a, s, n in zip(self.first, self.steps, size * self.factors, strict=True)
        )
        self.heights, self.widths = (
            rows.astype(np.float32),
            columns.astype(np.float32),
        )  # world z of the rows, x of the columns
        x, z = self.widths[None, :] - np.float32(shift[0]), self.heights[:, None] - np.float32(shift[2])
        t = turn.astype(np.float32)
        self.start = [t[0, i] * x - t[1, i] * np.float32(shift[1]) + t[2, i] * z for i in range(3)]
        self.direction = t[1]
        self.shape = (len(rows), len(columns))

    def at(self, t: float | Array) -> list[Array]:
        """Body coordinates where the rays have come to ``t``, a number or one for each ray."""
        return [p + t * d for p, d in zip(self.start, self.direction, strict=True)]

    def patch(self, points: Iterable[Point], margin: float = 0) -> Patch:
        """Rows and columns that show the body points and everything within ``margin`` mm of them."""
        world = np.asarray(list(points), float) @ self.turn.T + self.shift
        (x0, _, z0), (x1, _, z1) = (world.min(0) - margin).tolist(), (world.max(0) + margin).tolist()
        return self._range(0, z1, z0), self._range(1, x1, x0)

    def ellipsoid(self, centre: Point, axes: Point, turn: Array | None = None) -> Interval:
        """Where the rays enter and leave an ellipsoid; columns of ``turn`` are its axes."""
        inverse = (np.eye(3) if turn is None else turn).T / np.asarray(axes, float)[:, None]
        d = inverse @ self.direction
        offset = [p - np.float32(c) for p, c in zip(self.start, centre, strict=True)]
        q = [sum(np.float32(row[i]) * offset[i] for i in range(3)) for row in inverse]
        a = float(d @ d)
        middle = -sum(np.float32(d[i] / a) * q[i] for i in range(3))
        left = np.float32(1) - sum(np.square(q[i] + middle * np.float32(d[i])) for i in range(3))
        half = np.sqrt(np.maximum(left, 0) / np.float32(a))
        return middle - half, middle + half

    def column(self, centre: Point, axes: Point, top: float, rounds: int = 3) -> Interval:
        """Where the rays enter and leave a boxy ``domed_column``: its explicit surface, along tilted rays."""
        dx, dy, dz = (float(d) for d in self.direction)
        ends = []
        for sign in (-1, 1):
            t: Array | float = 0.0
            for _ in range(rounds):
                x = np.abs(self.start[0] + t * dx - centre[0]) / axes[0]
                z = np.maximum(self.start[2] + t * dz - top, 0) / axes[2]
                left = np.maximum(1 - x * x * np.sqrt(x) - z * z * np.sqrt(z), 0)
                t = (centre[1] + sign * axes[1] * left**0.4 - self.start[1]) / dy
            ends.append(np.asarray(t))
        return ends[0], np.maximum(*ends)

    def tube(self, start: Point, end: Point, radius: float) -> tuple[Patch, Array]:
        """Patch and length of the rays inside a round tube of any width; one thinner than a pixel is drawn wider and
        shorter, so that its mean is kept."""
        drawn = max(radius, 0.75 * self.pixel)
        (x0, y0, z0), (x1, y1, z1) = (np.asarray([start, end], float) @ self.turn.T + self.shift).tolist()
        along = (z1 - z0, x1 - x0)
        rows, columns = (
            self._range(axis, max(ends) + drawn, min(ends) - drawn) for axis, ends in enumerate(((z0, z1), (x0, x1)))
        )
        z, x = self.heights[rows, None] - np.float32(z0), self.widths[None, columns] - np.float32(x0)
        length = max(along[0] ** 2 + along[1] ** 2, 1e-6)
        share = np.clip(z * (along[0] / length) + x * (along[1] / length), 0, 1)
        squared = np.square(z - share * along[0]) + np.square(x - share * along[1])
        # a tube that points at the viewer is no longer than it is
        slant = min(math.sqrt(1 + (y1 - y0) ** 2 / length), 2.5)
        chord = np.sqrt(np.maximum(drawn**2 - squared, 0)) * (2 * slant * (radius / drawn) ** 2)
        return (rows, columns), chord

    def _range(self, axis: int, high: float, low: float) -> slice:
        """Rows (axis 0) or columns between two world coordinates."""
        first, step, count = float(self.first[axis]), float(self.steps[axis]), self.shape[axis]
        start = min(max(math.floor((first - high) / step), 0), count)
        return slice(start, min(max(math.ceil((first - low) / step) + 1, start), count))

    def sampled(self, distance: Callable[[Points], Array], corners: Array) -> tuple[Patch, Array, Array]:
        """A body that is given by its signed distance and lies within ``corners`` (n, 3), body points.

        Returns:
            patch; mm (samples, rows, columns) of each sample of each ray that lie inside; heights t of the samples.
        """
        patch = self.patch(corners)
        heights = corners @ self.turn[1] + self.shift[1]
        count = max(math.ceil(np.ptp(heights) / STEP_MM), 2)
        step = np.float32(np.ptp(heights) / count)
        t = np.float32(heights.min()) + step * (np.arange(count, dtype=np.float32) + np.float32(0.5))
        some = [_every(p.stop - p.start, SMOOTH_MM / s) for p, s in zip(patch, self.steps, strict=True)]
        start = [p[patch][np.ix_(*some)] for p in self.start]
        d = distance([p + t[:, None, None] * np.float32(v) for p, v in zip(start, self.direction, strict=True)])
        slope = np.abs(np.gradient(d, axis=0))
        width = np.sqrt(np.square(np.minimum(slope, step)) + np.float32(self.pixel**2))
        share = d / width
        for axis, (known, part) in enumerate(zip(some, patch, strict=True), start=1):
            share = _interpolated(share, known, part.stop - part.start, axis)
        return patch, np.clip(np.float32(0.5) - share, 0, 1) * step, t

    def average(self, picture: Array) -> Array:
        """Picture (rows, columns) at the size asked for: the mean over the rays of each pixel."""
        (i, j), (rows, columns) = self.factors, self.shape
        return picture.reshape(rows // i, i, columns // j, j).mean((1, 3), dtype=np.float32)


def _every(count: int, stride: float) -> Array:
    """Every so many-th index of ``count``, first and last included."""
    return np.unique(np.append(np.arange(0, count, max(int(stride), 1)), count - 1))


def _interpolated(values: Array, known: Array, count: int, axis: int) -> Array:
    """Linear interpolation of values at ``known`` indices to all ``count`` along an axis."""
    if len(known) == count:
        return values
    wanted = np.arange(count)
    left = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    share = ((wanted - known[left]) / (known[left + 1] - known[left])).astype(np.float32)
    share = share.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    low, high = values.take(left, axis), values.take(left + 1, axis)
    return low + share * (high - low)
