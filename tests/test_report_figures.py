"""Intervals and p-values of a report: what they see, and what is said where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion.evaluation.distances import precision_recall_density_coverage
from medical_diffusion.evaluation.distances.kid import mmd_squared
from medical_diffusion.evaluation.report import comparisons, figures
from medical_diffusion.evaluation.report.comparisons import compare
from medical_diffusion.evaluation.report.figures import distance_figures
from medical_diffusion.evaluation.report.notes import comparison
from medical_diffusion.evaluation.report.tables import shown, table

WITH_INTERVAL = ("fid", "kid", "precision", "recall", "density", "coverage")


def normal(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, 6)).astype(np.float32)


def test_p_is_small_where_one_generator_is_worse_and_not_where_they_are_alike() -> None:
    features = {"real": normal(60, 0), "a": normal(50, 1), "b": normal(50, 2), "c": normal(50, 3, 0.8)}
    found = {tuple(entry["generators"]): entry for entry in compare(features, ["a", "b", "c"])}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    for key in ("p_fid", "p_kid"):
        assert found["a", "b"][key] > 0.05
        assert found["a", "c"][key] < 0.01
        assert found["b", "c"][key] < 0.01
    assert "One of 3 pairs" in comparison(found["a", "b"])


def test_large_sets_are_tested_in_part_and_small_ones_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "MOST_SAMPLES", {"fid": 20, "kid": 30})
    (entry,) = compare({"real": normal(60, 0), "a": normal(50, 1), "b": normal(25, 2)}, ["a", "b"])
    assert (entry["n_fid"], entry["n_kid"]) == ([20, 20], [25, 25])
    assert "20 and 20 samples" in comparison(entry)
    assert "pairs" not in comparison(entry)
    (entry,) = compare({"real": normal(60, 0), "a": normal(50, 1), "b": normal(1, 2)}, ["a", "b"])
    assert entry["p_fid"] is None
    assert "at least 2 samples" in comparison(entry)


def test_unequal_numbers_hide_no_difference() -> None:
    """With many features FID's bias at 24 samples exceeds what sets the two apart."""
    real, worse, good = (
        np.random.default_rng(seed).normal(size=(count, 30)).astype(np.float32)
        for seed, count in ((0, 200), (1, 200), (2, 24))
    )
    (entry,) = compare({"real": real, "worse": 1.6 * worse, "good": good}, ["worse", "good"])
    assert entry["n_fid"] == entry["n_kid"] == [24, 24]
    assert entry["p_fid"] < 0.02


def test_one_pass_gives_what_four_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        calls.append(len(a))
        return precision_recall_density_coverage(a, b)

    monkeypatch.setattr(figures, "precision_recall_density_coverage", counted)
    real, synthetic = normal(40, 0), normal(30, 1)
    entries = distance_figures(real, synthetic, seed=0)
    assert len(calls) == 1 + figures.INTERVAL_REPEATS
    for name in figures.MANIFOLD:
        assert entries[name]["value"] == precision_recall_density_coverage(real, synthetic)[name]


def test_the_floor_of_kid_takes_no_more_images_than_one_of_its_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(a: np.ndarray, b: np.ndarray) -> float:
        sizes.append((len(a), len(b)))
        return mmd_squared(a, b)

    monkeypatch.setattr(figures, "mmd_squared", counted)
    monkeypatch.setattr(figures, "SUBSET_SIZE", 12)
    floor = figures.floor_figures(normal(40, 0), seed=0)
    assert set(sizes) == {(12, 12)}
    assert (floor["kid"]["n"], floor["fid"]["n"]) == (12, 20)
    assert floor["fid"]["std"] > 0
    assert floor["fid"]["low"] is None


def test_extrapolated_fid_is_called_biased_where_subsets_are_no_larger_than_the_features() -> None:
    few = distance_figures(normal(14, 0), normal(14, 1), seed=0)["fid_infinity"]
    assert "biased: its subsets hold 6 to 14 images" in few["note"]
    assert "more than the 6 features" in few["note"]
    many = distance_figures(normal(40, 0), normal(40, 1), seed=0)["fid_infinity"]
    assert "note" not in many
    assert min(many["sizes"]) > 6
    assert len(many["fids"]) == len(many["sizes"])
    assert many["residual"] >= 0


def test_the_interval_of_sharpness_grows_with_chance_in_the_real_images() -> None:
    generator = np.random.default_rng(0)
    synthetic, many, few = generator.gamma(4, size=400), generator.gamma(4, size=4000), generator.gamma(4, size=12)
    narrow, wide = (figures.sharpness_figure(synthetic, real, 0) for real in (many, few))
    assert narrow["low"] < synthetic.mean() / many.mean() == pytest.approx(narrow["value"])
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])
    assert figures.sharpness_figure(synthetic, few[:1], 0)["low"] is None
    assert "no fine detail" in figures.sharpness_figure(synthetic, 0 * few, 0)["reason"]


def test_a_table_keeps_the_row_of_a_figure_that_one_generator_lacks_and_says_what_is_of_halves() -> None:
    shared = {
        name: figures.figure(0.5) for name in ("ms_ssim_synthetic", "ms_ssim_real", "auroc_synthetic", "auroc_real")
    }
    report = {
        "generators": {
            "a": {"images": 9, "figures": {**shared, "fid": figures.figure(1.0), "ms_ssim_gap": figures.figure(0.1)}},
            "b": {"images": 2, "figures": {**shared, "fid": figures.absent("too few")}},
        },
        "floor": {"fid": figures.figure(2.0, std=0.3, n=4)},
        "ms_ssim_real": shared["ms_ssim_real"],
        "utility": {"auroc_real": shared["auroc_real"]},
    }
    rows = {row[0]: row[2:] for row in table(report)}
    assert rows["fid"] == ["1.00", "none: too few", "2.00 ± 0.30"]
    assert rows["ms_ssim_gap"] == ["0.100", "", ""]
    for kind in ("ms_ssim", "auroc"):
        assert rows[f"{kind}_synthetic"] == ["0.500", "0.500", ""]
        assert rows[f"{kind}_real"] == ["", "", "0.500 (not of halves)"]


def test_intervals_of_large_sets_come_from_smaller_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic = normal(600, 0), normal(500, 1, 0.5)
    halves = distance_figures(real, synthetic, seed=0)
    sizes = []

    def counted(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        sizes.append((len(a), len(b)))
        return precision_recall_density_coverage(a, b)

    monkeypatch.setattr(figures, "precision_recall_density_coverage", counted)
    monkeypatch.setattr(figures, "MOST_IN_SUBSET", 120)
    fifths = distance_figures(real, synthetic, seed=0)
    assert set(sizes) == {(600, 500), (120, 100)}
    for name in ("fid", "kid", "precision", "coverage"):
        widths = [entries[name]["high"] - entries[name]["low"] for entries in (halves, fifths)]
        assert 0.5 < widths[1] / widths[0] < 2
        assert fifths[name]["value"] == halves[name]["value"]


def test_a_figure_without_interval_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = distance_figures(normal(40, 0), normal(30, 1), seed=0)
    for name in WITH_INTERVAL:
        assert entries[name]["low"] <= entries[name]["value"] <= entries[name]["high"]
        assert "note" not in entries[name]
    for name in ("precision", "recall", "coverage"):
        assert entries[name]["low"] >= 0
        assert entries[name]["high"] <= 1
    alike = distance_figures(normal(40, 0), normal(40, 0), seed=0)
    assert alike["fid"]["low"] >= 0
    assert alike["kid"]["low"] < 0
    few = distance_figures(normal(30, 0), normal(2, 1), seed=0)["fid"]
    assert few["value"] is not None
    assert "no interval: subsets must hold at least 2 images" in few["note"]
    monkeypatch.setattr(figures, "MOST_IN_SUBSET", 10)
    entries = distance_figures(normal(40, 0), normal(32, 1), seed=0)
    for name in WITH_INTERVAL:
        assert entries[name]["low"] is None
        assert entries[name]["note"] == "no interval: a subset of 10 images would hold 8 of the smaller set, too few"


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"value": 3.5143, "low": 1.6366, "high": 5.3919}, "3.51 [1.64, 5.39]"),
        ({"value": 0.002, "low": 5.06e-05, "high": 0.01109}, "0.0020 [0.0001, 0.0111]"),
        ({"value": 0.0, "low": 0.0, "high": 0.0074}, "0.0000 [0.0000, 0.0074]"),
        ({"value": -0.0131, "low": None, "high": None}, "-0.0131"),
        ({"value": 1234.5}, "1234"),
        ({"value": 0.00099, "std": 0.004, "n": 9}, "0.0010 ± 0.0040 (halves of 9)"),
        ({"value": None, "reason": "too few"}, "none: too few"),
    ],
)
def test_a_figure_is_written_to_the_place_that_it_is_known_to(entry: dict, text: str) -> None:
    assert shown(entry) == text
