"""How much images of a set differ from one another: mean MS-SSIM between pairs (Khader et al. 2023, Table 2).

Pairs are drawn at random among all pairs of distinct images, each at most once. 1 means that all are the same image;
a generator should come near the value of real images, from either side: below it lies variety that is not anatomy. The
similarity is that of the loss, over as many scales as the size allows, so small, anisotropic and flat images work
(:mod:`medical_diffusion.losses.ssim` says why it is not MONAI's, which has no mean over pairs and no interval either).

The interval. Pairs that share an image are not independent, so neither the deviation of the pairs nor a bootstrap over
pairs tells the uncertainty, and a bootstrap over images pairs copies of an image with itself. With e_ij the similarity
of a pair minus the mean, P pairs, and T_i the sum of e over the pairs with image i, the variance of the mean is the sum
of e_ij e_kl over all pairs of pairs that share an image, by P² (dyadic cluster-robust variance, Aronow et al. 2015,
equation 4):

    variance = (c sum_i T_i² - sum_ij e_ij²) / P²,    c = n (n - 1) / (n - 2)²

with the jackknife's c for few images n. In simulations a 95 % interval held the truth 92 to 95 % of the time from five
images on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import LEVEL, Interval
from medical_diffusion.losses.ssim import ms_ssim

PAIRS = 1000
DATA_RANGE = 2.0
"""Of images in [-1, 1]."""
BATCH_VOXELS = 1 << 20
"""Voxels compared at a time: four maps of them, twice, stay in a processor's reach."""
MINIMUM = 2


def ms_ssim_diversity(
    images: Sequence[Tensor] | Tensor,
    pairs: int = PAIRS,
    seed: int = 0,
    level: float = LEVEL,
    device: str | torch.device = "cpu",
) -> Interval:
    """Mean MS-SSIM between pairs of distinct images.

    Args:
        images: ``(C, H, W, D)`` in [-1, 1] by index, all of one shape; read when needed.
        pairs: how many; all there are where there are fewer.
        seed: of the pairs.
        level: of the interval.
        device: where the similarity is computed.

    Returns:
        the mean with its interval, both in [0, 1]; ``n`` counts the images. With two images, one pair, there is no
        interval: its ends are NaN.

    Raises:
        UserError: fewer than two images, no pairs, different shapes, a level outside (0, 1).
    """
    if len(images) < MINIMUM:
        raise UserError(f"MS-SSIM between images needs at least {MINIMUM} images", len(images))
    if pairs < 1:
        raise UserError("MS-SSIM between images needs at least one pair", pairs)
    if not 0 < level < 1:
        raise UserError("level must lie between 0 and 1", level)
    chosen = random_pairs(len(images), pairs, seed)
    similarities = np.concatenate(list(_similarities(images, chosen, device)))
    return pair_interval(similarities, chosen, len(images), level)


def diversity_gap(synthetic: Interval, real: Interval) -> Interval:
    """Difference of two mean similarities, synthetic minus real: above 0 there is too little variety, below 0 what
    varies is not anatomy; the nearer to 0 the better.

    The interval joins those of two independent means without assuming them symmetric (MOVER, Zou & Donner 2008); if it
    leaves out 0, the sets differ.
    """
    difference = synthetic.value - real.value
    low = difference - math.hypot(synthetic.value - synthetic.low, real.high - real.value)
    high = difference + math.hypot(synthetic.high - synthetic.value, real.value - real.low)
    return Interval(difference, low, high, synthetic.n)


def random_pairs(count: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Distinct pairs i < j of ``count`` images, (P, 2), sorted; all of them where there are no more than ``pairs``."""
    generator = np.random.default_rng(seed)
    total = count * (count - 1) // 2
    numbers = generator.choice(total, pairs, replace=False) if pairs < total else np.arange(total)
    numbers = np.sort(numbers)
    # pair number n lies in the row i that starts at number i (2 count - i - 1) / 2
    starts = np.arange(count) * (2 * count - np.arange(count) - 1) // 2
    first = np.searchsorted(starts, numbers, side="right") - 1
    # the last image has an empty row that starts where the numbers end
    first = np.minimum(first, count - 2)
    return np.stack([first, numbers - starts[first] + first + 1], axis=1)


def pair_interval(values: np.ndarray, pairs: np.ndarray, count: int, level: float = LEVEL) -> Interval:
    """Mean of one value a pair (P,), with an interval that knows which pairs (P, 2) share an image."""
    from scipy.stats import t

    mean = float(values.mean())
    used = np.unique(pairs)
    if len(used) <= MINIMUM:
        return Interval(mean, math.nan, math.nan, count)
    deviations = values - mean
    sums = np.zeros(count)
    np.add.at(sums, pairs, np.repeat(deviations[:, None], 2, axis=1))
    squares = float((deviations**2).sum())
    # the mean was estimated too: the jackknife's factor, exact for all pairs and values that are sums over images
    images = len(used)
    joint = float((sums**2).sum()) * images * (images - 1) / (images - 2) ** 2
    # chance can take the estimate below that of independent pairs
    variance = max(joint - squares, squares) / len(values) ** 2
    half = float(t.ppf((1 + level) / 2, images - 1)) * math.sqrt(variance)
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), count)


def _similarities(
    images: Sequence[Tensor] | Tensor, pairs: np.ndarray, device: str | torch.device
) -> Iterator[np.ndarray]:
    """MS-SSIM of each pair in batches. Pairs are sorted, so the first image of one often is that of the next."""
    shape = images[0].shape
    size = max(1, BATCH_VOXELS // math.prod(shape))
    held: tuple[int, Tensor] = (0, images[0])
    with tqdm(total=len(pairs), desc="MS-SSIM of pairs", unit="pair", leave=False) as bar:
        for start in range(0, len(pairs), size):
            first, second = [], []
            for i, j in pairs[start : start + size].tolist():
                if held[0] != i:
                    held = (i, _of_shape(images[i], shape))
                first.append(held[1])
                second.append(_of_shape(images[j], shape))
            with torch.inference_mode():
                similarity = ms_ssim(torch.stack(first).to(device), torch.stack(second).to(device), DATA_RANGE)
            bar.update(len(first))
            yield similarity.double().cpu().numpy()


def _of_shape(image: Tensor, shape: torch.Size) -> Tensor:
    if image.shape != shape:
        raise UserError(
            "images must have the same shape and channels", f"{tuple(shape)} and {tuple(image.shape)}", "Resize them"
        )
    return image
