"""Diversity by MS-SSIM of pairs: which pairs, which value, which interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import diversity
from medical_diffusion.evaluation.bootstrap import Interval
from medical_diffusion.evaluation.diversity import diversity_gap, ms_ssim_diversity, pair_interval, random_pairs
from medical_diffusion.losses import ms_ssim


def similar(count: int, *shape: int, noise: float, seed: int = 0) -> Tensor:
    """Images that differ from a common one by noise."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(shape, generator=generator) * 2 - 1
    return (common + noise * torch.randn((count, *shape), generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize(("count", "pairs"), [(2, 1), (2, 9), (5, 10), (5, 3), (30, 100), (1000, 50)])
def test_pairs_are_distinct_images_and_come_once(count: int, pairs: int) -> None:
    chosen = random_pairs(count, pairs, seed=3)
    assert len(chosen) == min(pairs, count * (count - 1) // 2)
    assert (chosen[:, 0] < chosen[:, 1]).all() and chosen.min() >= 0 and chosen.max() < count
    assert len({tuple(p) for p in chosen.tolist()}) == len(chosen)


def test_every_pair_is_equally_likely() -> None:
    counts = np.zeros((6, 6))
    for seed in range(600):
        for i, j in random_pairs(6, 5, seed):
            counts[i, j] += 1
    upper = counts[np.triu_indices(6, 1)]
    assert counts.sum() == 3000 == upper.sum()
    assert abs(upper - 200).max() < 60  # four standard deviations


@pytest.mark.parametrize("shape", [(1, 20, 17, 1), (1, 5, 6, 7), (2, 9, 40, 4), (3, 12, 12, 1), (1, 1, 1, 1)])
def test_value_is_the_mean_over_pairs_at_any_size(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = similar(5, *shape, noise=0.3)
    monkeypatch.setattr(diversity, "BATCH_VOXELS", 3 * math.prod(shape))  # the last batch is smaller
    expected = np.mean([float(ms_ssim(x[i : i + 1], x[j : j + 1], 2.0)) for i in range(5) for j in range(i)])
    found = ms_ssim_diversity(list(x))
    assert found.value == pytest.approx(expected, abs=1e-5)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == 5


def test_the_more_alike_the_higher_and_copies_are_one() -> None:
    values = [ms_ssim_diversity(similar(8, 1, 24, 24, 1, noise=noise)).value for noise in (0.05, 0.2, 0.5)]
    assert values[0] > values[1] > values[2]
    copies = ms_ssim_diversity(similar(6, 1, 16, 16, 1, noise=0.0))
    assert (copies.value, copies.low, copies.high) == pytest.approx((1, 1, 1), abs=1e-5)
    constant = ms_ssim_diversity(torch.zeros(4, 1, 9, 9, 1))
    assert constant.value == pytest.approx(1, abs=1e-5)


def test_a_seed_is_a_result_and_images_are_read_when_needed() -> None:
    class Counting(list[Tensor]):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    x = Counting(similar(30, 1, 12, 12, 1, noise=0.3))
    first = ms_ssim_diversity(x, pairs=20, seed=1)
    assert Counting.reads <= 42
    assert ms_ssim_diversity(x, pairs=20, seed=1) == first
    assert ms_ssim_diversity(x, pairs=20, seed=2) != first


@pytest.mark.parametrize(("count", "pairs", "image", "pair"), [(12, 1000, 0.1, 0.02), (40, 100, 0.05, 0.1)])
def test_the_interval_holds_the_truth_19_times_of_20(count: int, pairs: int, image: float, pair: float) -> None:
    """Values with an effect of each image and noise of each pair."""
    held = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        chosen, effects = random_pairs(count, pairs, seed), generator.normal(size=count) * image
        values = 0.5 + effects[chosen].sum(1) + generator.normal(size=len(chosen)) * pair
        interval = pair_interval(values, chosen, count)
        held.append(interval.low <= 0.5 <= interval.high)
    assert 0.9 <= np.mean(held) <= 0.985


def test_the_interval_is_wider_than_that_of_independent_pairs() -> None:
    chosen = random_pairs(10, 1000)
    values = 0.5 + (np.random.default_rng(0).normal(size=10) * 0.1)[chosen].sum(1)
    interval = pair_interval(values, chosen, 10)
    assert interval.high - interval.low > 1.5 * 2 * 1.96 * values.std() / math.sqrt(len(values))


def test_two_images_have_a_value_without_an_interval() -> None:
    found = ms_ssim_diversity(similar(2, 1, 9, 9, 1, noise=0.3))
    assert 0 < found.value < 1
    assert math.isnan(found.low) and math.isnan(found.high)


def test_the_gap_is_two_sided_and_joins_both_uncertainties() -> None:
    real, collapsed = Interval(0.5, 0.44, 0.56, 10), Interval(0.7, 0.62, 0.78, 20)
    gap = diversity_gap(collapsed, real)
    assert (gap.value, gap.low, gap.high, gap.n) == pytest.approx((0.2, 0.1, 0.3, 20))
    other_way = diversity_gap(real, collapsed)
    assert (other_way.value, other_way.low, other_way.high) == pytest.approx((-0.2, -0.3, -0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ms_ssim_diversity(x[:1]), "at least 2 images.*Received: 1"),
        (lambda x: ms_ssim_diversity(x, pairs=0), "at least one pair"),
        (lambda x: ms_ssim_diversity(x, level=1.0), "level must lie between 0 and 1"),
        (lambda x: ms_ssim_diversity([x[0], x[1, :, :5]]), r"same shape.*\(1, 9, 9, 1\) and \(1, 5, 9, 1\)"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(similar(3, 1, 9, 9, 1, noise=0.2))
