"""Shared drawing tools of flat phantoms: layers of colour or stain on a grid of square pixels, with soft edges.

As on the canvas of volumes a structure is a signed distance (negative inside), an edge is one pixel wide, and a tube
thinner than a pixel is drawn as wide as the pixel with its opacity lowered by the ratio of the widths. Coordinates are
lengths from the middle of the picture, x to the right and y down. Pixels above the finest length needed are drawn on a
finer grid and averaged, so a small picture is the average of a large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medical_diffusion.data.phantoms.primitives import Array
from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

FlatBox = tuple[slice, slice]
FlatPoint = Sequence[float] | Array  # x, y
SPLINE_DEVIATION = 0.48  # of a cubic B-spline surface over independent values of deviation 1, mean over places


def image_plane(image_size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Rows and columns of an image's size.

    Args:
        image_size: pixels (H, W, 1).
        name: of the image, for the message.

    Raises:
        UserError: a size that is not positive, or a depth other than 1.
    """
    rows, columns, depth = per_axis(image_size, "image_size")
    if depth != 1:
        rule = f"a {name} is an image: image_size must end in 1"
        raise UserError(rule, (rows, columns, depth), f"Use {(rows, columns, 1)}")
    return rows, columns


class Plane:
    """Layers (rows, columns, layers) and a mask to paint on.

    Args:
        size: pixels (rows, columns).
        pixel: side of a pixel.
        finest: pixels need not be drawn smaller than this.
        background: value of each layer of the empty picture.
    """

    def __init__(self, size: Sequence[int], pixel: float, finest: float, background: Sequence[float]) -> None:
        self.pixel = pixel
        self.factor = max(1, math.ceil(pixel / finest - 1e-6))
        self.step = pixel / self.factor
        self.shape = tuple(n * self.factor for n in size)
        self._first = [-(n - 1) / 2 * self.step for n in self.shape]
        y, x = (f + self.step * np.arange(n) for f, n in zip(self._first, self.shape, strict=True))
        self.x, self.y = x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]
        self.layers = np.empty((*self.shape, len(background)), np.float32)
        self.layers[:] = background
        self.mask = np.zeros(self.shape, np.uint8)

    def box(self, points: Sequence[FlatPoint], margin: float) -> FlatBox:
        """Rows and columns that hold the points and everything within ``margin`` of them."""
        slices = []
        for axis, values in enumerate(zip(*points, strict=True)):
            first, count = self._first[1 - axis], self.shape[1 - axis]
            low = math.floor((min(values) - margin - first) / self.step)
            high = math.ceil((max(values) + margin - first) / self.step) + 1
            low = min(max(low, 0), count)
            slices.append(slice(low, min(max(high, low), count)))
        return slices[1], slices[0]

    def within(self, box: FlatBox) -> tuple[Array, Array]:
        """x (1, columns) and y (rows, 1) of a box."""
        return self.x[:, box[1]], self.y[box[0]]

    def coverage(self, distance: Array, blur: float = 0) -> Array:
        """Share of each pixel that a structure fills, from its signed distance; ``blur`` widens the edge."""
        return np.minimum(np.maximum(0.5 - distance * (1 / max(self.step, blur)), 0), 1)

    def tube(self, start: FlatPoint, end: FlatPoint, radii: tuple[float, float]) -> tuple[FlatBox, Array]:
        """Box and coverage of a strip with round ends, whose half width runs from ``radii[0]`` to ``radii[1]``."""
        least = self.step / 2
        box = self.box([start, end], max(*radii, least) + self.step / 2)
        x, y = self.within(box)
        (dx, dy), x, y = (float(end[0] - start[0]), float(end[1] - start[1])), x - start[0], y - start[1]
        length = max(dx * dx + dy * dy, 1e-12)
        share = np.minimum(np.maximum(x * (dx / length) + y * (dy / length), 0), 1)
        radius = radii[0] + (radii[1] - radii[0]) * share
        away = np.sqrt(np.square(x - share * dx) + np.square(y - share * dy))
        if min(radii) >= least:
            return box, self.coverage(away - radius)
        drawn = np.maximum(radius, least)
        return box, self.coverage(away - drawn) * (radius / drawn)

    def paint(self, coverage: Array, values: Sequence[float] | Array, box: FlatBox, label: int | None = None) -> None:
        """Lay a structure over what is there; the mask takes its label where it fills half of a pixel or more."""
        layers = self.layers[box]
        layers += coverage[..., None] * (values - layers)
        if label is not None:
            self.label(coverage, label, box)

    def label(self, coverage: Array, label: int, box: FlatBox = np.s_[:, :]) -> None:
        """Name the pixels that a structure fills by half or more."""
        np.copyto(self.mask[box], np.uint8(label), where=coverage >= 0.5)

    def noise(self, rng: np.random.Generator, cell: float, extent: float) -> Array:
        """A smooth random surface (rows, columns) of mean 0 and deviation 1: cubic B-splines over random values.

        Args:
            rng: gives the same surface at every size of the picture.
            cell: length between the values; where the pixels are not finer than this the surface fades to 0.
            extent: side of the square, around the middle, beyond which its border values go on.
        """
        count = math.ceil(extent / cell) + 4
        values = rng.standard_normal((count, count), dtype=np.float32)
        across, down = (_spline(p.ravel() / cell, count) for p in (self.x, self.y))
        return down @ values @ across.T * np.float32(np.clip(cell / self.step - 1, 0, 1) / SPLINE_DEVIATION)

    def average(self, picture: Array) -> Array:
        """A picture (rows, columns, ...) at the size asked for: the mean over each pixel."""
        f, (rows, columns) = self.factor, self.shape
        blocks = picture.reshape(rows // f, f, columns // f, f, *picture.shape[2:])
        return blocks.mean((1, 3), dtype=np.float32)

    def labels(self) -> Array:
        """The mask at the size asked for: the most frequent label in each pixel, the lower of two that are equal."""
        known = np.flatnonzero(np.bincount(self.mask.ravel())).astype(np.uint8)
        shares = np.stack([self.average((self.mask == label).astype(np.float32)) for label in known])
        return known[shares.argmax(0)]

    def affine(self, unit: float = 1.0) -> Array:
        """Rows run down and columns to the patient's left, as one looks at a patient (RAS+, mm), around the middle.

        Args:
            unit: mm per unit of this plane's lengths.
        """
        (rows, columns), pixel = (n // self.factor for n in self.shape), unit * self.pixel
        matrix = np.zeros((4, 4))
        matrix[2, 0] = matrix[0, 1] = -pixel
        matrix[1, 2], matrix[3, 3] = unit, 1
        matrix[2, 3], matrix[0, 3] = pixel * (rows - 1) / 2, pixel * (columns - 1) / 2
        return matrix


def _spline(places: Array, count: int) -> Array:
    """Weights (places, count) of the cubic B-splines whose middles are 1 apart, around 0."""
    low, high = -(count - 1) / 2 + 1, (count - 1) / 2 - 1
    middles = np.arange(count, dtype=np.float32) - (count - 1) / 2
    d = np.abs(np.clip(places, low, high)[:, None] - middles)
    near, far = 2 / 3 - d * d * (1 - d / 2), np.maximum(2 - d, 0) ** 3 / 6
    return np.where(d < 1, near, far).astype(np.float32)
