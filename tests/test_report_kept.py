from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from report_images import smooth, write

from medical_diffusion.__main__ import main
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import Interval
from medical_diffusion.evaluation.copies import Matches
from medical_diffusion.evaluation.copy_rate import Calibration, CopyRate
from medical_diffusion.evaluation.report import kept
from medical_diffusion.evaluation.report.kept import NOTHING_KEPT, KeptFigures

KEYS = {"real": ["a", "b"], "gan": ["c"], "other": ["d"]}


def counted(value: object) -> tuple[Callable[[], object], list[int]]:
    calls: list[int] = []

    def compute() -> object:
        calls.append(1)
        return value

    return compute, calls


def result() -> CopyRate:
    matches = Matches(torch.rand(2), torch.tensor([1, 0]), [(0,), ()], [(1, 0, -2), (0, 0, 0)], torch.rand(2))
    calibration = Calibration(1.5, 0.01, 1, 20, 0.99, 1.0, "held-out real images", torch.rand(20))
    return CopyRate(matches, torch.tensor([True, False]), 0.5, 0.01, 0.99, calibration)


@pytest.mark.parametrize(
    "value",
    [
        {"fid": {"value": 1 / 3, "low": None, "note": "Größe"}, "sizes": [1, 2]},
        (Interval(0.5, math.inf, 0.7, 9), {"n": 3}),
        (None, "a reason"),
        Interval(np.float64(1 / 3), np.float64(0.1), np.float64("inf"), 4),
        [0.1, 0.2],
    ],
)
def test_a_figure_comes_back_as_it_was(tmp_path: Path, value: object) -> None:
    compute, calls = counted(value)
    figures = KeptFigures(tmp_path, {"seed": 0}, KEYS)
    assert figures("fid", ["real", "gan"], compute) == value
    assert KeptFigures(tmp_path, {"seed": 0}, KEYS)("fid", ["real", "gan"], compute) == value
    assert len(calls) == 1


def test_a_copy_rate_comes_back_with_its_matches_and_threshold(tmp_path: Path) -> None:
    whole = result()
    figures = KeptFigures(tmp_path, {}, KEYS)
    figures("copies", ["gan"], lambda: whole)
    found = figures("copies", ["gan"], lambda: pytest.fail("computed again"))
    torch.testing.assert_close(found.matches.scores, whole.matches.scores)
    assert (found.matches.flips, found.matches.shifts) == (whole.matches.flips, whole.matches.shifts)
    assert found.flagged.tolist() == [True, False]
    assert found.calibration.false_alarm_interval == whole.calibration.false_alarm_interval
    assert (figures.taken, figures.computed) == (1, 1)


@pytest.mark.parametrize(
    ("name", "sets", "protocol", "keys"),
    [
        ("kid", ["real", "gan"], {"seed": 0}, KEYS),
        ("fid", ["gan", "real"], {"seed": 0}, KEYS),
        ("fid", ["real", "other"], {"seed": 0}, KEYS),
        ("fid", ["real", "gan"], {"seed": 1}, KEYS),
        ("fid", ["real", "gan"], {"seed": 0}, {**KEYS, "gan": ["c", "e"]}),
        ("fid", ["real", "gan"], {"seed": 0}, {**KEYS, "real": ["b", "a"]}),
    ],
)
def test_what_a_figure_depends_on_makes_another_one(
    tmp_path: Path, name: str, sets: list[str], protocol: dict, keys: dict
) -> None:
    KeptFigures(tmp_path, {"seed": 0}, KEYS)("fid", ["real", "gan"], lambda: 1.0)
    assert KeptFigures(tmp_path, protocol, keys)(name, sets, lambda: 2.0) == 2.0


def test_other_code_computes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KeptFigures(tmp_path, {}, KEYS)("fid", ["real"], lambda: 1.0)
    monkeypatch.setattr(kept, "code_hash", lambda: "another")
    assert KeptFigures(tmp_path, {}, KEYS)("fid", ["real"], lambda: 2.0) == 2.0


def test_a_damaged_file_is_computed_anew_and_a_fault_is_not_kept(tmp_path: Path) -> None:
    figures = KeptFigures(tmp_path, {}, KEYS)

    def fail() -> float:
        raise UserError("there must be images", 0)

    with pytest.raises(UserError, match="there must be images"):
        figures("fid", ["real"], fail)
    assert not list(tmp_path.iterdir())
    figures("fid", ["real"], lambda: 1.0)
    next(tmp_path.iterdir()).write_bytes(b"no archive")
    assert figures("fid", ["real"], lambda: 2.0) == 2.0
    assert figures("fid", ["real"], lambda: 3.0) == 2.0


def test_without_a_folder_nothing_is_kept() -> None:
    assert [NOTHING_KEPT("fid", ["real"], lambda n=n: n) for n in range(2)] == [0, 1]


def classed(folder: Path, count: int, seed: int) -> Path:
    """Images in folders of their class, "ill" ones brighter in the middle."""
    images = smooth(count, seed).astype(int)
    images[: count // 2, 10:22, 8:20] += 60
    images = np.clip(images, 0, 255).astype(np.uint8)
    for name, part in (("ill", images[: count // 2]), ("healthy", images[count // 2 :])):
        write(folder / name, part)
    return folder


def test_a_passing_fault_of_reading_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {name: classed(tmp_path / name, 24, seed) for seed, name in enumerate(("real", "train", "one"))}
    words = ["evaluate", "--real", sets["real"], "--train", sets["train"], "--synthetic", sets["one"]]
    words += ["--labels", "folders", "--utility_steps", 2, "--output", tmp_path / "out", "--fail-if-memorised", 0.5]

    def fail(*_: object, **__: object) -> None:
        raise UserError("an image file must be readable", "the drive is gone")

    with monkeypatch.context() as patched:
        for name in ("report.memorisation.calibrate", "diversity.ms_ssim", "utility.ClassAgreement"):
            patched.setattr(f"medical_diffusion.evaluation.{name}", fail)
        patched.setattr("medical_diffusion.evaluation.report.nearness.FeatureSearch", fail)
        assert main([str(word) for word in words]) == 1
    assert "copies of one could not be counted: an image file must be readable" in capsys.readouterr().err
    assert main([str(word) for word in words]) == 0
    text = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    assert "the drive is gone" not in text


COMPUTED = (
    "features.random_network.RandomNetwork.features",
    "diversity.ms_ssim",
    "report.figures.high_frequency_energy",
    "report.figures.fid",
    "report.figures.kid",
    "report.figures.precision_recall_density_coverage",
    "report.memorisation.CopySearch",
    "report.comparisons.permutation_test_fid",
    "report.comparisons.permutation_test_kid",
    "report.nearness.FeatureSearch",
    "utility.ClassAgreement",
)
"""What takes long in a report."""


def test_a_second_run_computes_nothing_and_another_generator_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {name: classed(tmp_path / name, 24, seed) for seed, name in enumerate(("real", "train", "one", "two"))}
    words = ["evaluate", "--real", sets["real"], "--train", sets["train"], "--labels", "folders", "--utility_steps", 4]
    words += ["--synthetic", sets["one"], "--synthetic", sets["two"], "--output", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    first = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    page = (tmp_path / "out" / "report.html").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patched:
        for name in COMPUTED:
            patched.setattr(f"medical_diffusion.evaluation.{name}", lambda *_, **__: pytest.fail("computed again"))
        assert main([str(word) for word in words]) == 0
    assert (tmp_path / "out" / "report.json").read_text(encoding="utf-8") == first
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    told = capsys.readouterr().out
    total = int(told.partition(" parts of the report")[0].split()[-1])
    assert f"{total} of {total} parts of the report were taken from {tmp_path / 'out' / 'cache' / 'figures'}" in told
    words += ["--synthetic", classed(tmp_path / "three", 24, 7)]
    assert main([str(word) for word in words]) == 0
    assert f"{total} of " in capsys.readouterr().out
