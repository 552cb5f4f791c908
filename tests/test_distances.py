"""FID, KID, precision, recall, density and coverage: against closed forms and naive references."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy.linalg import sqrtm

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.distances import (
    SmallSampleWarning,
    fid,
    fid_infinity,
    is_rank_deficient,
    kid,
    precision_recall_density_coverage,
)
from medical_diffusion.evaluation.distances.kid import mmd_squared


def normal(count: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float32)


def with_moments(samples: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The samples moved so that their mean and covariance are exactly these."""
    centred = samples.astype(np.float64)
    centred -= centred.mean(0)
    white = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def random_covariance(features: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(features, features))
    return root @ root.T + 0.1 * np.eye(features)


def test_fid_of_two_gaussians_is_the_closed_form() -> None:
    mean, other_mean = np.arange(5.0), np.array([1.0, -2, 0, 4, 3])
    covariance, other = random_covariance(5, 1), random_covariance(5, 2)
    real = with_moments(normal(60, 5, 1), mean, covariance)
    synthetic = with_moments(normal(80, 5, 2), other_mean, other)
    root = sqrtm(sqrtm(covariance) @ other @ sqrtm(covariance)).real
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other - 2 * root)
    assert fid(real, synthetic) == pytest.approx(expected, rel=1e-9)
    assert fid(synthetic, real) == pytest.approx(expected, rel=1e-9)


def test_fid_of_diagonal_covariances_is_the_distance_of_standard_deviations() -> None:
    samples = normal(50, 4)
    variances, others = np.array([1.0, 4, 9, 0.25]), np.array([4.0, 4, 1, 1])
    real = with_moments(samples, np.zeros(4), np.diag(variances))
    synthetic = with_moments(samples, np.full(4, 2.0), np.diag(others))
    assert fid(real, synthetic) == pytest.approx(16 + ((np.sqrt(variances) - np.sqrt(others)) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize(("count", "other"), [(7, 9), (7, 40), (40, 7), (12, 12)])
def test_fid_of_fewer_images_than_features_is_that_of_the_full_matrices(count: int, other: int) -> None:
    real, synthetic = normal(count, 12, 1), normal(other, 12, 2) * 2 + 1
    covariance, other_covariance = np.cov(real.T.astype(float)), np.cov(synthetic.T.astype(float))
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)).sum()
    difference = real.mean(0, dtype=float) - synthetic.mean(0, dtype=float)
    expected = difference @ difference + np.trace(covariance + other_covariance) - 2 * middle
    with pytest.warns(SmallSampleWarning, match=f"{count} real and {other} synthetic images with 12 features"):
        assert fid(real, synthetic) == pytest.approx(expected, rel=1e-6)
    assert is_rank_deficient(real, synthetic)


def test_fid_with_enough_images_does_not_warn_and_is_zero_for_the_same() -> None:
    real = normal(40, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fid(real, real[::-1]) == pytest.approx(0, abs=1e-5)
    assert not is_rank_deficient(real, real)


def test_fid_of_constant_images_is_finite() -> None:
    constant = np.full((10, 3), 0.5, dtype=np.float32)
    real = with_moments(normal(20, 3), np.zeros(3), np.diag([1.0, 2, 3]))
    assert fid(constant, constant) == 0
    assert fid(real, constant) == pytest.approx(6 + 3 * 0.25)
    assert np.isfinite(kid(real, constant)[0])
    assert all(np.isfinite(v) for v in precision_recall_density_coverage(real, constant).values())
    assert precision_recall_density_coverage(constant, constant)["coverage"] == 1


def test_extrapolation_removes_the_bias_of_few_images() -> None:
    real, synthetic = normal(400, 20, 1), normal(400, 20, 2)  # of one distribution: the true FID is 0
    line = fid_infinity(real, synthetic)
    biased = fid(real, synthetic)
    assert biased > 0.3
    assert abs(line.value) < biased / 5
    assert line.slope > 0
    assert line.sizes[0] == 400
    assert line.sizes[-1] == 160
    assert line.fids[0] == pytest.approx(biased)
    assert line.residual < biased / 10


def test_extrapolation_keeps_a_true_distance() -> None:
    real, synthetic = normal(400, 10, 1), normal(400, 10, 2) + 1
    assert fid_infinity(real, synthetic).value == pytest.approx(10, rel=0.1)


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    within = [np.mean([k(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    return float(sum(within) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_mmd_equals_the_sums_over_pairs() -> None:
    x, y = normal(9, 4, 1), normal(7, 4, 2) + 0.5
    assert mmd_squared(x, y) == pytest.approx(naive_mmd(x, y), rel=1e-9)
    assert mmd_squared(x, x[::-1]) == pytest.approx(naive_mmd(x, x[::-1]), rel=1e-9)


def test_kid_is_the_mean_over_subsets() -> None:
    x, y = normal(8, 4, 1), normal(8, 4, 2) + 0.5
    whole = kid(x, y, subset_size=8, subsets=3)
    assert whole[0] == pytest.approx(naive_mmd(x, y), rel=1e-9)
    assert whole[1] == pytest.approx(0, abs=1e-12)
    assert kid(x, y, seed=1) == kid(x, y, seed=1) != kid(x, y, seed=2)
    assert kid(x, y)[1] > 0


def test_kid_is_unbiased_at_any_number_of_images() -> None:
    """Its mean over many pairs of sets of one distribution is 0; leaving the diagonal in would make it positive."""
    values = [mmd_squared(normal(6, 5, 2 * s), normal(6, 5, 2 * s + 1)) for s in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    biased = [mmd_squared(normal(6, 5, s), normal(6, 5, s)) for s in range(50)]
    assert np.mean(biased) < 0


def naive_manifold(real: np.ndarray, synthetic: np.ndarray, k: int) -> dict[str, float]:
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a.astype(float) - b.astype(float)) ** 2).sum()))

    def radii(points: np.ndarray) -> list[float]:
        return [sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    real_radii, synthetic_radii = radii(real), radii(synthetic)
    inside = [[distance(r, s) <= radius for s in synthetic] for r, radius in zip(real, real_radii, strict=True)]
    recalled = [
        any(distance(r, s) <= radius for s, radius in zip(synthetic, synthetic_radii, strict=True)) for r in real
    ]
    return {
        "precision": float(np.any(inside, axis=0).mean()),
        "recall": float(np.mean(recalled)),
        "density": float(np.sum(inside) / (k * len(synthetic))),
        "coverage": float(np.any(inside, axis=1).mean()),
    }


@pytest.mark.parametrize(("k", "chunk_size"), [(3, 2048), (3, 7), (1, 5), (5, 1)])
def test_manifold_equals_brute_force_whatever_the_chunks(k: int, chunk_size: int) -> None:
    real, synthetic = normal(30, 6, 1), normal(23, 6, 2) * 0.8 + 0.4
    expected = naive_manifold(real, synthetic, k)
    found = precision_recall_density_coverage(real, synthetic, k=k, chunk_size=chunk_size)
    assert found == pytest.approx(expected)
    assert 0.1 < expected["recall"] < 1


def test_manifold_with_ties_and_duplicates_equals_brute_force() -> None:
    """Small whole numbers: many distances are equal, many points the same."""
    generator = np.random.default_rng(0)
    for _ in range(10):
        real = generator.integers(0, 3, (25, 3)).astype(np.float32)
        synthetic = generator.integers(0, 4, (20, 3)).astype(np.float32)
        assert precision_recall_density_coverage(real, synthetic, chunk_size=8) == pytest.approx(
            naive_manifold(real, synthetic, 3)
        )


def test_copies_of_real_images_are_inside_whatever_the_rounding() -> None:
    """A copy of the neighbour that a ball reaches to lies exactly on its border."""
    real = normal(60, 700) * 3 + 50
    found = precision_recall_density_coverage(real, real.copy(), chunk_size=17)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx(naive_manifold(real, real, 3)["density"]) == pytest.approx(4 / 3)


def test_the_four_figures_tell_collapse_from_nonsense() -> None:
    real, held_out = normal(200, 8, 1), normal(200, 8, 2)
    floor = precision_recall_density_coverage(real, held_out)
    collapsed = precision_recall_density_coverage(real, np.repeat(held_out[:4], 50, axis=0))
    elsewhere = precision_recall_density_coverage(real, held_out + 20)
    assert collapsed["recall"] < 0.1 < floor["recall"]
    assert collapsed["coverage"] < floor["coverage"] / 2
    assert elsewhere == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fid(normal(1, 3), normal(5, 3)), r"FID needs at least 2 real images.*Received: 1"),
        (lambda: fid(normal(5, 3), normal(5, 4)), r"as many features.*3 and 4.*same extractor"),
        (lambda: fid(normal(5, 3), normal(5, 3)[0]), r"synthetic features must have the shape"),
        (lambda: fid(normal(5, 3) * np.nan, normal(5, 3)), r"real features must be finite.*15"),
        (lambda: kid(normal(5, 3), normal(3, 3)), r"KID needs at least 4 synthetic images.*Received: 3"),
        (lambda: kid(normal(5, 3), normal(5, 3), subset_size=6), r"subset_size must lie in \[2, 5\]"),
        (lambda: kid(normal(5, 3), normal(5, 3), subsets=0), r"at least one subset"),
        (lambda: fid_infinity(normal(5, 3), normal(50, 3)), r"extrapolation of FID needs at least 10 real images"),
        (lambda: fid_infinity(normal(50, 3), normal(50, 3), points=2), r"at least 3 points and one draw.*2 and 3"),
        (lambda: precision_recall_density_coverage(normal(3, 3), normal(9, 3)), r"k = 3 needs at least 4 real images"),
        (lambda: precision_recall_density_coverage(normal(9, 3), normal(9, 3), k=0), r"k and chunk_size.*k 0"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
