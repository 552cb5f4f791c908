"""Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

    FID = |m1 - m2|² + tr(S1) + tr(S2) - 2 tr((S1^(1/2) S2 S1^(1/2))^(1/2))

The last trace is the sum of square roots of the eigenvalues of a symmetric positive matrix: no square root of the
unsymmetric product S1 S2, whose imaginary parts others cut off. Any A with A^T A = S1 gives the same eigenvalues
through A S2 A^T: for at least as many features as images A is the centred features themselves, and a matrix of images
by images is all that is decomposed; otherwise A is the symmetric root. In float64 throughout.

Why no library's: MONAI, torchmetrics and torch-fidelity give the same for more images than features, but decompose the
product S1 S2 of features by features in any case. With fewer images its zero eigenvalues are rounding errors whose
roots count (MONAI gives -4e-5 for a set of 100 images with 512 features against itself) and the work is in vain (2 s
instead of 3 ms there), which a permutation test or an interval repeats hundreds of times. MONAI's also calls SciPy's
``sqrtm`` with an argument that SciPy 1.18 drops, and torchmetrics' takes images through a network instead of features.

FID of a sample is biased upwards by about c/n, with c depending on the distribution: figures compare only at the same
n. With fewer images than features the covariances have no full rank and the bias is large; :func:`fid` warns, and
:mod:`~medical_diffusion.evaluation.distances.extrapolation` shows the limit.
"""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np

from medical_diffusion.evaluation.distances.checks import checked_pair

MINIMUM = 2
"""Images that a covariance needs."""


class SmallSampleWarning(UserWarning):
    """Fewer images than features: the value stands, its bias is large."""


def fid(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Fréchet distance, in [0, infinity), 0 for equal means and covariances.

    Args:
        real: features (N, F).
        synthetic: features (M, F).

    Raises:
        UserError: fewer than two images a set, different numbers of features, values that are not finite.

    Warns:
        SmallSampleWarning: not more images than features in one of the sets.
    """
    real, synthetic = checked_pair(real, synthetic, MINIMUM, "FID")
    if is_rank_deficient(real, synthetic):
        warnings.warn(
            f"FID of {len(real)} real and {len(synthetic)} synthetic images with {real.shape[1]} features: the "
            "covariances have no full rank and the value is biased upwards; compare it at equal numbers only, beside "
            "the real-vs-real floor",
            SmallSampleWarning,
            stacklevel=2,
        )
    return frechet_distance(Moments(real), Moments(synthetic))


def is_rank_deficient(real: np.ndarray, synthetic: np.ndarray) -> bool:
    """Whether a covariance of one of the two sets (N, F) cannot have full rank: N at most F."""
    return min(len(real), len(synthetic)) <= real.shape[1]


class Moments:
    """Mean and covariance of features (N, F), N at least 2, in float64."""

    def __init__(self, features: np.ndarray) -> None:
        features = np.asarray(features, dtype=np.float64)
        self.mean = features.mean(0)
        self._rows = (features - self.mean) / np.sqrt(len(features) - 1)
        self.trace = float(np.einsum("nf,nf->", self._rows, self._rows))

    @property
    def is_wide(self) -> bool:
        """Whether there are no more images than features."""
        return self._rows.shape[0] <= self._rows.shape[1]

    @cached_property
    def covariance(self) -> np.ndarray:
        """(F, F), with N - 1 in the denominator."""
        return self._rows.T @ self._rows

    @cached_property
    def factor(self) -> np.ndarray:
        """A with ``A^T A`` the covariance, (min(N, F), F)."""
        if self.is_wide:
            return self._rows
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def congruence(self, factor: np.ndarray) -> np.ndarray:
        """``factor covariance factor^T``, (K, K), for a factor (K, F)."""
        if self.is_wide:
            product = factor @ self._rows.T
            return product @ product.T
        return factor @ self.covariance @ factor.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """Distance between two Gaussians, not below 0."""
    if a.factor.shape[0] > b.factor.shape[0]:  # the smaller matrix is decomposed
        a, b = b, a
    root_trace = trace_of_root(b.congruence(a.factor))
    difference = a.mean - b.mean
    return max(float(difference @ difference) + a.trace + b.trace - 2 * root_trace, 0.0)


def trace_of_root(matrix: np.ndarray) -> float:
    """Sum of the square roots of the eigenvalues of a symmetric positive matrix, negative rounding errors cut off."""
    return float(np.sqrt(np.linalg.eigvalsh((matrix + matrix.T) / 2).clip(min=0)).sum())
