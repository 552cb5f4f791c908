"""What the MRI phantoms share: smooth random fields, receive sensitivity and magnitude noise.

A random field is a sum of plane waves of one wavelength and random directions and phases,
``f(p) = sqrt(2 / N) sum cos(k_i p + phi_i)`` with ``|k_i| = 2 pi / wavelength`` (spectral method, Shinozuka and
Deodatis 1991): close to Gaussian with unit variance, and the same at every size. Its zeros are winding surfaces about
half a wavelength apart, like folds of a cortex or septa of a breast; ``|f| / |grad f|`` is the distance to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medical_diffusion.data.phantoms.primitives import Array, Points

BLOCK = 16384  # points
BIAS_WAVELENGTH_MM = 420.0
REFERENCE_VOXEL_MM3 = 100.0
NOISE_LIMIT = 30.0  # units; where voxels are very small


class WaveField:
    """A smooth random function of place with zero mean and unit variance.

    Args:
        rng: where directions and phases come from.
        wavelength: mm, one for all axes or one each (x, y, z): the field changes slowly along an axis of a long one.
        waves: how many are added.
    """

    def __init__(self, rng: np.random.Generator, wavelength: float | Sequence[float], waves: int = 20) -> None:
        direction = rng.standard_normal((waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.vectors = (2 * np.pi * direction / np.asarray(wavelength, float)).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, waves).astype(np.float32)
        self.scale = np.float32(np.sqrt(2 / waves))

    def __call__(self, points: Points) -> Array:
        """Values at points (x, y, z of any common shape, mm)."""
        return self._over(points, lambda angles: np.cos(angles).sum(0))

    def distance_to_zero(self, points: Points) -> Array:
        """First-order distance (mm) to the nearest surface where the field is zero."""
        flattest = 0.01 * float(np.square(self.vectors).sum())  # where the slope vanishes the distance is no use

        def distance(angles: Array) -> Array:
            slope = self.vectors.T @ np.sin(angles)
            return np.abs(np.cos(angles).sum(0)) / np.sqrt(np.square(slope).sum(0) + flattest)

        return self._over(points, distance) / self.scale

    def _over(self, points: Points, function: Callable[[Array], Array]) -> Array:
        """A function of the waves' angles (waves, points), block by block to spare memory."""
        flat = np.stack([np.asarray(p, np.float32).ravel() for p in points])
        blocks = np.array_split(flat, max(flat.shape[1] // BLOCK, 1), axis=1)
        values = [function(self.vectors @ block + self.phases[:, None]) for block in blocks]
        return self.scale * np.concatenate(values).reshape(np.shape(points[0]))


def bias_field(points: Points, rng: np.random.Generator, strength: float) -> Array:
    """Receive sensitivity, a smooth factor around 1 whose logarithm has the standard deviation ``strength``."""
    return np.exp(strength * WaveField(rng, BIAS_WAVELENGTH_MM, waves=6)(points))


def noise_deviation(deviation: float, spacing: Array) -> float:
    """Standard deviation in voxels of a size, from that in ``REFERENCE_VOXEL_MM3``: it falls with the root of the
    volume, as if small voxels were averaged, and is at most ``NOISE_LIMIT``."""
    return min(deviation * float(np.sqrt(REFERENCE_VOXEL_MM3 / np.prod(spacing))), NOISE_LIMIT)


def magnitude_noise(image: Array, deviation: float, rng: np.random.Generator) -> Array:
    """Magnitude of a complex signal with Gaussian noise in both parts (Rician, Gudbjartsson and Patz 1995)."""
    real, imaginary = deviation * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.hypot(image + real, imaginary).astype(np.float32)
