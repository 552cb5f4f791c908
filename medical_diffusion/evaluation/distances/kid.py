"""Kernel distance: squared maximum mean discrepancy with a cubic polynomial kernel (Bińkowski et al. 2018, Section 4).

    k(x, y) = (x.y / F + 1)³
    MMD²(X, Y) = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Leaving out i = j makes it unbiased: its expectation does not depend on the number of images, unlike that of FID, and a
value below 0 is a rounding of chance, not an error. It is averaged over random subsets, drawn without replacement.

Why no library's: MONAI's ``MMDMetric`` has a linear kernel and takes two sets of one size only; torchmetrics draws
subsets from torch's global generator, so that figures need not repeat, and takes images through a network instead of
features; torch-fidelity's is the same estimate, but is imported with torchvision only. Both cube in the features' type:
float32 changes the fourth digit at 2048 features.
"""

from __future__ import annotations

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.distances.checks import checked_pair

SUBSET_SIZE = 1000
SUBSETS = 100
MINIMUM = 4
"""Images a set, so that subsets of half of them have a pair."""


def kid(
    real: np.ndarray,
    synthetic: np.ndarray,
    subset_size: int | None = None,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation of the unbiased MMD² over subsets.

    The standard deviation is the spread at the size of the subsets, not the uncertainty of the mean; that is
    :func:`medical_diffusion.evaluation.permutation.subsample_interval`.

    Args:
        real: features (N, F).
        synthetic: features (M, F).
        subset_size: images of each set in a subset; by default 1000, or half of the smaller set where that is less.
        subsets: how many.
        seed: of the subsets.

    Raises:
        UserError: fewer than four images a set, a subset larger than a set or below 2, no subsets, otherwise as for
            FID.
    """
    real, synthetic = checked_pair(real, synthetic, MINIMUM, "KID")
    smaller = min(len(real), len(synthetic))
    if subset_size is None:
        subset_size = min(SUBSET_SIZE, smaller // 2)
    if not 2 <= subset_size <= smaller:
        raise UserError(f"subset_size must lie in [2, {smaller}], the smaller set", subset_size)
    if subsets < 1:
        raise UserError("KID needs at least one subset", subsets)
    generator = np.random.default_rng(seed)
    values = [
        mmd_squared(*(x[generator.choice(len(x), subset_size, replace=False)] for x in (real, synthetic)))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def mmd_squared(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD² between features (N, F) and (M, F), at least two of each."""
    return mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(x.y / F + 1)³`` of every pair, (N, M), in float64."""
    products = np.asarray(x, dtype=np.float64) @ np.asarray(y, dtype=np.float64).T
    products /= x.shape[1]
    products += 1
    return products * products * products


def mean_off_diagonal(matrix: np.ndarray) -> float:
    """Mean of a square matrix (N, N) without its diagonal."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))
