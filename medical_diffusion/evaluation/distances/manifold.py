"""Precision, recall, density and coverage from balls around images that reach to their k-th nearest neighbour.

With B(x) the ball around x whose radius is the distance to its k-th nearest neighbour in its own set:

    precision = share of synthetic images in the ball of any real one       (Kynkäänniemi et al. 2019, equation 2)
    recall    = share of real images in the ball of any synthetic one
    density   = real balls around a synthetic image, by k, on average       (Naeem et al. 2020, equation 5)
    coverage  = share of real balls that hold any synthetic image           (equation 6)

Precision and density ask whether samples look real, recall and coverage whether they are as varied. One outlier among
the real images has a large ball and lifts precision; density and coverage forgive it.

Squared distances are |x|² + |y|² - 2 x.y, a matrix product in float32 over chunks. Its rounding is about 1e-6 of the
norms, so a point counts as in a ball up to ``TOLERANCE`` of them: copies of an image, at distance 0 or exactly on the
border of a ball, are inside whatever the rounding.

Why no library's: MONAI and torchmetrics have none of the four, torch-fidelity the first two only, with whole matrices
of distances in memory by default.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.distances.checks import checked_pair

NEIGHBOURS = 3
CHUNK_SIZE = 2048
TOLERANCE = 1e-5


def precision_recall_density_coverage(
    real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS, chunk_size: int = CHUNK_SIZE
) -> dict[str, float]:
    """The four figures under their names: all in [0, 1] but density, which is at least 0 and 1 for equal sets.

    Args:
        real: features (N, F).
        synthetic: features (M, F).
        k: neighbours that a ball reaches to.
        chunk_size: images compared with another chunk at a time; memory grows with its square.

    Raises:
        UserError: not more than k images a set, k or chunk_size below 1, otherwise as for FID.
    """
    if k < 1 or chunk_size < 1:
        raise UserError("k and chunk_size must be at least 1", f"k {k}, chunk_size {chunk_size}")
    real, synthetic = checked_pair(real, synthetic, k + 1, f"Precision and recall with k = {k}")
    # float32 cancels less around a common centre
    centre = real.mean(0, dtype=np.float64)
    x, y = (torch.from_numpy((features - centre).astype(np.float32)) for features in (real, synthetic))
    radii_x, radii_y = (_squared_radii(features, k, chunk_size) for features in (x, y))
    norms_x, norms_y = (features.square().sum(1) for features in (x, y))
    in_any_real = torch.zeros(len(y), dtype=torch.bool)
    in_any_synthetic = torch.zeros(len(x), dtype=torch.bool)
    holds_any = torch.zeros(len(x), dtype=torch.bool)
    balls = 0
    for rows in _chunks(len(x), chunk_size):
        for columns in _chunks(len(y), chunk_size):
            distances = _squared_distances(x[rows], y[columns], norms_x[rows], norms_y[columns], 1 - TOLERANCE)
            inside = distances <= radii_x[rows, None]
            balls += int(inside.sum())
            in_any_real[columns] |= inside.any(0)
            holds_any[rows] |= inside.any(1)
            in_any_synthetic[rows] |= (distances <= radii_y[columns]).any(1)
    return {
        "precision": _share(in_any_real),
        "recall": _share(in_any_synthetic),
        "density": balls / (k * len(y)),
        "coverage": _share(holds_any),
    }


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _squared_distances(x: Tensor, y: Tensor, norms_x: Tensor, norms_y: Tensor, scale: float = 1.0) -> Tensor:
    """``scale (|x|² + |y|²) - 2 x.y`` of every pair, (N, M)."""
    return torch.addmm((norms_x[:, None] + norms_y) * scale, x, y.T, alpha=-2)


def _squared_radii(x: Tensor, k: int, chunk_size: int) -> Tensor:
    """Squared distance of each image (N, F) to its k-th nearest other one, (N,).

    Distances are symmetric: every pair of chunks is multiplied once and serves the rows of both.
    """
    x = x - x.mean(0)
    norms = x.square().sum(1)
    nearest = torch.full((len(x), k), torch.inf)
    chunks = _chunks(len(x), chunk_size)
    for number, rows in enumerate(chunks):
        for columns in chunks[number:]:
            distances = _squared_distances(x[rows], x[columns], norms[rows], norms[columns]).clamp_(min=0)
            if rows == columns:
                distances.fill_diagonal_(torch.inf)
            else:
                nearest[columns] = _smallest(nearest[columns], distances.T.contiguous(), k)
            nearest[rows] = _smallest(nearest[rows], distances, k)
    return nearest[:, -1]


def _smallest(nearest: Tensor, distances: Tensor, k: int) -> Tensor:
    """The k smallest of each row of two matrices, ascending."""
    best = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return torch.cat([nearest, best], dim=1).topk(k, dim=1, largest=False).values
