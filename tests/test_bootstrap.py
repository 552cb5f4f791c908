"""Bootstrap intervals: coverage, agreement with the plain algorithm and with scipy, pairing, errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import bootstrap
from medical_diffusion.evaluation.bootstrap import (
    Interval,
    bootstrap_deviation,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_means,
    bootstrap_ratio,
)


def skewed(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, size=count)


def test_agrees_with_scipy() -> None:
    values = skewed(60)
    found = bootstrap_interval(values, resamples=20_000)
    rng = np.random.default_rng(7)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng)
    tolerance = 0.02 * values.std()
    assert found.value == pytest.approx(values.mean()) and found.n == 60
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=tolerance)
    deviation = bootstrap_deviation(values, resamples=20_000)
    assert deviation == pytest.approx(expected.standard_error, rel=0.03)
    assert deviation == pytest.approx(values.std() / math.sqrt(60), rel=0.03), "the closed form for a mean"


def test_one_value_is_no_error_as_it_is_to_scipy() -> None:
    assert str(bootstrap_interval([2.0])) == "2.000"
    with pytest.raises(ValueError, match="two or more observations"):
        stats.bootstrap(([2.0],), np.mean)


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        interval = bootstrap_interval(generator.normal(5.0, 2.0, size=40), resamples=500)
        hits += interval.low <= 5.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_a_higher_level_and_fewer_subjects_are_wider() -> None:
    values = skewed(80)
    widths = [i.high - i.low for i in (bootstrap_interval(values, level=level) for level in (0.5, 0.9, 0.99))]
    assert widths == sorted(widths) and widths[0] < widths[1] < widths[2]
    few = bootstrap_interval(values[:8])
    assert few.high - few.low > 1.5 * widths[1]


def test_a_seed_is_an_interval() -> None:
    values = skewed(25)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(list(values), seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_chunks_draw_what_one_piece_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = skewed(30)
    whole = bootstrap_means(values, 101)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 7 * 30)
    np.testing.assert_allclose(bootstrap_means(values, 101), whole, rtol=1e-12)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 1)
    assert len(bootstrap_means(values, 11)) == 11


def test_pairing_cancels_what_both_arms_share() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.normal(0.7, 0.2, size=30)
    b = hardness + generator.normal(0, 0.01, size=30)
    a = hardness + 0.03 + generator.normal(0, 0.01, size=30)
    difference = bootstrap_difference(a, b)
    assert difference.low > 0.02 and difference.high < 0.04 and difference.n == 30
    assert difference.value == pytest.approx(a.mean() - b.mean())
    apart = bootstrap_interval(a), bootstrap_interval(b)
    assert apart[0].low < apart[1].high, "separate intervals overlap although every subject gained"
    assert bootstrap_difference(b, a).value == pytest.approx(-difference.value)


def test_resamples_of_equal_size_draw_the_same_subjects() -> None:
    a, b = skewed(20), skewed(20, seed=1)
    np.testing.assert_allclose(bootstrap_means(a) - bootstrap_means(b), bootstrap_means(a - b), atol=1e-12)


def test_a_ratio_holds_the_chance_of_both_sides() -> None:
    """The variance of a ratio of means is, relative to its square, the sum of those of the means."""
    a, b = skewed(200) + 3, skewed(150, seed=1) + 3
    found = bootstrap_ratio(a, b, resamples=4000)
    assert found.value == pytest.approx(a.mean() / b.mean())
    assert found.n == 200
    relative = math.sqrt(a.var() / a.mean() ** 2 / 200 + b.var() / b.mean() ** 2 / 150)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * relative * found.value, rel=0.08)
    assert math.isnan(bootstrap_ratio(a, b[:1]).low)
    assert bootstrap_ratio(a, b[:1]).value == pytest.approx(a.mean() / b[0])


def test_little_data_is_not_given_a_width() -> None:
    none, one = bootstrap_interval([]), bootstrap_interval([0.25])
    assert math.isnan(none.value) and none.n == 0 and math.isnan(bootstrap_deviation([]))
    assert one.value == 0.25 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(bootstrap_deviation([0.25]))
    equal = bootstrap_interval([0.1, 0.1, 0.1])
    assert (equal.low, equal.high) == pytest.approx((0.1, 0.1), abs=1e-15)


def test_goes_into_json_and_text() -> None:
    assert Interval(0.5, 0.25, 0.75, 9).as_dict() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    assert json.loads(json.dumps(bootstrap_interval([0.5]).as_dict(), allow_nan=False))["low"] is None
    texts = [str(Interval(0.5, 0.25, 0.75, 9)), str(bootstrap_interval([0.5])), str(bootstrap_interval([]))]
    assert texts == ["0.500 [0.250, 0.750]", "0.500", "none"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([0.1, math.nan, math.inf]), "finite numbers.*2 of 3 are not.*hides the failures"),
        (lambda: bootstrap_interval(np.zeros((2, 3))), r"one number per subject.*shape \(2, 3\)"),
        (lambda: bootstrap_interval(["a", "b"]), "one number per subject.*could not convert"),
        (lambda: bootstrap_interval([0.1], resamples=1), "at least 2 resamples.*1"),
        (lambda: bootstrap_interval([0.1], level=95), "between 0 and 1.*95"),
        (lambda: bootstrap_interval([0.1], level=1), "between 0 and 1.*1"),
        (lambda: bootstrap_difference([0.1, 0.2], [0.1]), "values of the same subjects.*2 and 1 values"),
        (lambda: bootstrap_ratio([0.1, 0.2], [0.0, 0.0]), "mean that is not 0 to divide by.*2 values"),
        (lambda: bootstrap_deviation([0.1], resamples=0), "at least 2 resamples.*0"),
    ],
)
def test_bad_calls_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
