"""FID without its small-sample bias: the straight line through FID over 1/n, read at 0 (Chong & Forsyth 2020).

    FID(n) = FID_infinity + c / n + ...

FID is computed on random subsets of several sizes n, evenly spaced in 1/n, and averaged over a few draws of each
size. Chong & Forsyth keep the statistics of the real set and vary the number of synthetic images. Medical sets are
small on both sides, so here both shrink together: the bias of both goes with 1/n, and the line removes both. It is
straight only where n exceeds the number of features; below, points may lie on a line all the same, and its limit is
biased upwards still.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.distances.checks import checked_pair
from medical_diffusion.evaluation.distances.fid import Moments, frechet_distance

SMALLEST_SHARE = 0.4
"""Of the images in the smallest subsets: low enough for a lever arm, high enough for a straight line."""
MINIMUM = 10
MINIMUM_POINTS = 3


@dataclass(frozen=True)
class FidExtrapolation:
    """The line through FID over 1/n.

    Attributes:
        value: FID at infinitely many images; near 0 noise can take it below 0.
        slope: c, how fast the bias falls.
        sizes: n of each point.
        fids: FID of each point.
        residual: root mean square distance of the points from the line, in units of FID.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    fids: tuple[float, ...]
    residual: float


def fid_infinity(
    real: np.ndarray, synthetic: np.ndarray, points: int = 6, draws: int = 3, seed: int = 0
) -> FidExtrapolation:
    """FID extrapolated to infinitely many images on both sides.

    Args:
        real: features (N, F).
        synthetic: features (M, F).
        points: sizes of subsets.
        draws: subsets of each size.
        seed: of the subsets.

    Raises:
        UserError: fewer than ten images a set, fewer than three points or one draw, otherwise as for FID.
    """
    real, synthetic = checked_pair(real, synthetic, MINIMUM, "The extrapolation of FID")
    if points < MINIMUM_POINTS or draws < 1:
        raise UserError(
            f"the extrapolation of FID needs at least {MINIMUM_POINTS} points and one draw", f"{points} and {draws}"
        )
    largest = min(len(real), len(synthetic))
    inverse = np.linspace(1 / largest, 1 / (SMALLEST_SHARE * largest), points)
    sizes = np.round(1 / inverse).astype(int)
    generator = np.random.default_rng(seed)

    def subset(features: np.ndarray, size: int) -> Moments:
        return Moments(features[generator.choice(len(features), size, replace=False)])

    fids = [
        float(np.mean([frechet_distance(subset(real, n), subset(synthetic, n)) for _ in range(draws)])) for n in sizes
    ]
    slope, value = np.polyfit(1 / sizes, fids, 1)
    residual = float(np.sqrt(np.mean((value + slope / sizes - fids) ** 2)))
    return FidExtrapolation(float(value), float(slope), tuple(sizes.tolist()), tuple(fids), residual)
