"""Permutation tests, subsampling intervals and the floor of real against real."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.distances import fid, kid
from medical_diffusion.evaluation.distances.fid import Moments, frechet_distance
from medical_diffusion.evaluation.distances.kid import mmd_squared
from medical_diffusion.evaluation.permutation import (
    permutation_test,
    permutation_test_fid,
    permutation_test_kid,
    real_floor,
    real_floors,
    subsample_interval,
    subsample_intervals,
)


def normal(count: int, features: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def quiet_fid(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(Moments(a), Moments(b))


def difference_of_means(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


def test_p_counts_exchanged_labels_at_least_as_extreme() -> None:
    """Of the 6 ways to label 2 + 2 values, 2 are as extreme as the observed one."""
    a, b = np.array([0.0, 1.0]), np.array([10.0, 11.0])
    p = permutation_test(difference_of_means, a, b, permutations=3000)
    assert p == pytest.approx(1 / 3, abs=0.04)


def test_p_is_never_zero_and_one_for_equal_sets() -> None:
    a, b = np.zeros(20), np.ones(20)
    assert permutation_test(difference_of_means, a, b, permutations=99) == 0.01
    assert permutation_test(difference_of_means, a, a, permutations=99) == 1


def test_p_is_uniform_where_generators_do_not_differ() -> None:
    values = [
        permutation_test(difference_of_means, normal(12, 1, 2 * s), normal(12, 1, 2 * s + 1), permutations=59)
        for s in range(200)
    ]
    assert np.mean(np.array(values) <= 0.05) < 0.1
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("counts", [(14, 11, 20), (30, 40, 25), (9, 9, 9)])
def test_fast_tests_equal_the_plain_one(counts: tuple[int, int, int]) -> None:
    """With more and with fewer images than features."""
    real, a, b = (normal(n, 12, s) for s, n in enumerate(counts))
    a = a * 1.1

    def by_fid(x: np.ndarray, y: np.ndarray) -> float:
        return quiet_fid(real, x) - quiet_fid(real, y)

    def by_kid(x: np.ndarray, y: np.ndarray) -> float:
        return mmd_squared(real, x) - mmd_squared(real, y)

    assert permutation_test_fid(real, a, b, 59) == permutation_test(by_fid, a, b, 59)
    assert permutation_test_kid(real, a, b, 299) == permutation_test(by_kid, a, b, 299)


def test_a_worse_generator_is_found_and_an_equal_one_is_not() -> None:
    real, a, b, worse = (normal(60, 6, s) for s in range(4))
    worse = worse + 0.8
    for test in (permutation_test_fid, permutation_test_kid):
        assert test(real, a, worse, 99) == 0.01
        assert test(real, worse, a, 99) == 0.01
        assert test(real, a, b, 99) > 0.05


def test_subsampling_gives_the_standard_error_of_a_linear_statistic() -> None:
    """The mean of n normal values: 1.96 / sqrt(n), at any share."""
    x, y = normal(400, 1, 1), normal(400, 1, 2)
    for share in (0.3, 0.5, 0.7):
        found = subsample_interval(difference_of_means, x, y, share=share, repeats=2000)
        assert found.value == pytest.approx(difference_of_means(x, y))
        expected = 1.96 * np.sqrt((x.var() + y.var()) / 400)
        assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)
        assert found.n == 400


def test_thirty_subsets_cover_as_often_as_they_say() -> None:
    """Outer quantiles of thirty values held the truth in 90 % of these trials only."""
    held = []
    for seed in range(400):
        x, y = normal(40, 1, 2 * seed), normal(40, 1, 2 * seed + 1)
        found = subsample_interval(difference_of_means, x, y, repeats=30, seed=seed)
        held.append(found.low <= 0 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_figures_from_the_same_subsets_are_those_of_one_at_a_time() -> None:
    x, y = normal(30, 2, 1), normal(20, 2, 2)
    both = subsample_intervals(
        lambda a, b: {"mean": difference_of_means(a, b), "fid": quiet_fid(a, b)}, x, y, repeats=9
    )
    assert both["mean"] == subsample_interval(difference_of_means, x, y, repeats=9)
    assert both["fid"] == subsample_interval(quiet_fid, x, y, repeats=9)
    floors = real_floors(lambda a, b: {"fid": quiet_fid(a, b)}, x, most=5)
    assert floors["fid"].n == 5
    assert floors["fid"].mean > real_floor(quiet_fid, x).mean


def test_the_interval_of_fid_covers_its_spread_where_the_bootstrap_is_beside_it() -> None:
    real, synthetic = normal(150, 8, 1), normal(150, 8, 2) + 0.5
    found = subsample_interval(quiet_fid, real, synthetic, repeats=200)
    spread = np.std([quiet_fid(normal(150, 8, s), normal(150, 8, s + 500) + 0.5) for s in range(10, 110)])
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(spread, rel=0.35)
    generator = np.random.default_rng(0)
    bootstrap = [
        quiet_fid(real[generator.integers(0, 150, 150)], synthetic[generator.integers(0, 150, 150)]) for _ in range(100)
    ]
    assert np.mean(bootstrap) > found.value + 0.5 * np.std(bootstrap)


def test_the_floor_is_the_score_of_halves() -> None:
    real = normal(101, 5, 1)
    floor = real_floor(quiet_fid, real, repeats=20)
    assert floor.n == 50
    expected = np.mean([quiet_fid(normal(50, 5, s), normal(50, 5, s + 100)) for s in range(40)])
    assert floor.mean == pytest.approx(expected, rel=0.3)
    assert floor.std > 0
    assert abs(real_floor(lambda a, b: kid(a, b, subsets=5)[0], real).mean) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: permutation_test(difference_of_means, x[:1], x), "at least 2 samples of each.*1 and 20"),
        (lambda x: permutation_test(difference_of_means, x, x, permutations=0), "at least one permutation"),
        (lambda x: permutation_test_kid(x, x, x[:1]), "at least 2 samples"),
        (lambda x: permutation_test_fid(x, x, x[:, :2]), "as many features.*3 and 2"),
        (lambda x: subsample_interval(fid, x, x[:2]), "subsets must hold at least 2 images.*1 of 2 synthetic"),
        (lambda x: subsample_interval(fid, x, x, share=1.0), "share and level must lie between 0 and 1.*share 1"),
        (lambda x: subsample_interval(fid, x, x, repeats=1), "repeats be at least 2.*repeats 1"),
        (lambda x: real_floor(fid, x[:3]), "floor of real against real needs at least 4 real images"),
        (lambda x: real_floor(fid, x, repeats=0), "at least one split"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(normal(20, 3, 0))
