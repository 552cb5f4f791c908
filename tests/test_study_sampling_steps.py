"""The study of samplers: tables and figure, resuming without drawing again, seconds from the record, refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_runs import BUNDLE

from medical_diffusion.__main__ import build_parser
from medical_diffusion.cli.study import run_sampling_steps
from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.data.preprocessing import IntensityScaling
from medical_diffusion.errors import UserError
from medical_diffusion.pictures import read_png
from medical_diffusion.studies.line_figure import Point, draw_lines, value_axis
from medical_diffusion.studies.sampling_runner import BundleSampler, Drawn, SampleFormat, check_plain
from medical_diffusion.studies.sampling_steps import round_numbers, run_sampling_study, timing
from medical_diffusion.synthesis import SampleWriter, intensity_of_samples

SIZE = (12, 10, 8)
PLANE = (14, 11, 1)
SPEED = 0.25
"""Seconds of a step."""


def smooth(seed: int, size: tuple[int, int, int]) -> torch.Tensor:
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(seed))
    for axis in (1, 2, 3):
        image = (image + image.roll(1, axis)) / 2 if size[axis - 1] > 1 else image
    return image.clamp(-1, 1)


class FakeSampler:
    """Writes smooth images with noise that falls with the steps, two at a time; may die after some batches."""

    def __init__(self, size: tuple[int, int, int] = SIZE, dies_after: int | None = None) -> None:
        self.size, self.planar, self.dies_after, self.drawn = size, size[2] == 1, dies_after, 0

    def prepare(self, options: Mapping[str, Any]) -> SampleFormat:
        intensity, window = ("stored", (0.0, 1.0)) if self.planar else ("window", (-1000.0, 1000.0))
        return SampleFormat(self.planar, 1, self.size, None, intensity, window, 100)

    def writer(self, folder: str | Path) -> SampleWriter:
        scaling = IntensityScaling("stored") if self.planar else IntensityScaling("window", -1000, 1000)
        return SampleWriter(folder, scaling, (1, 1, 1), {}, png_bits=8 if self.planar else None)

    def draw(self, options: Mapping[str, Any], drawn: Callable[[Drawn], None]) -> None:
        writer, first = self.writer(options["output_dir"]), int(options.get("seed", 0))
        missing = [s for s in range(first, first + options["num_samples"]) if not writer.is_written(s)]
        for batch in (missing[n : n + 2] for n in range(0, len(missing), 2)):
            if self.dies_after is not None and self.drawn >= self.dies_after:
                raise KeyboardInterrupt
            for seed in batch:
                noise = torch.randn(1, *self.size, generator=torch.Generator().manual_seed(seed)) / options["num_steps"]
                writer.write(seed, (smooth(1000 + seed, self.size) + 4 * noise).clamp(-1, 1))
            self.drawn += len(batch)
            drawn(Drawn(len(batch), SPEED * options["num_steps"] * len(batch), "abacus"))


def real_images(folder: Path, size: tuple[int, int, int]) -> Path:
    writer = FakeSampler(size).writer(folder)
    for seed in range(16):
        writer.write(seed, smooth(seed, size))
    return folder


def study(root: Path, runner: FakeSampler, **more: Any) -> Path:
    given = {"samplers": ["ddim", "dpmpp"], "steps": [10, 2], "num_samples": 8, **more}
    return run_sampling_study(BUNDLE, root, root / "real", root / "out", runner=runner, **given)


def rows_of(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((root / "out" / "table.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("size", [SIZE, PLANE])
def test_more_steps_cost_more_and_noise_is_seen(tmp_path: Path, size: tuple[int, int, int]) -> None:
    real_images(tmp_path / "real", size)
    table = study(tmp_path, FakeSampler(size)).read_text(encoding="utf-8")
    rows = rows_of(tmp_path)
    assert [(row["sampler"], row["steps"]) for row in rows] == [
        ("ddim", "2"), ("ddim", "10"), ("dpmpp", "2"), ("dpmpp", "10")
    ]  # fmt: skip
    for few, many in (rows[:2], rows[2:]):
        assert float(few["seconds_per_sample"]) == pytest.approx(2 * SPEED)
        assert float(many["seconds_per_sample"]) == pytest.approx(10 * SPEED)
        for name in ("kid", "fid"):
            assert float(many[name]) < float(few[name])
        assert abs(float(many["high_frequency_ratio"]) - 1) < abs(float(few["high_frequency_ratio"]) - 1)
        assert float(few["kid_low"]) <= float(few["kid"]) <= float(few["kid_high"])
    assert "| dpmpp | 10 | 2.5 |" in table
    assert "8 samples of each" in table
    record = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    assert record["real"]["images"] == 16
    assert record["arms"][0]["figures"]["kid"]["extractor"] == "random"
    picture = read_png(tmp_path / "out" / "figure.png")
    halves = np.array_split(picture.astype(int), 2, axis=1)
    for half in halves:
        for colour in ((60, 60, 60), (0, 114, 178)):
            assert (np.abs(half - colour).max(2) < 8).sum() > 100


def test_an_interrupted_study_goes_on_and_keeps_its_seconds(tmp_path: Path) -> None:
    real_images(tmp_path / "real", PLANE)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, FakeSampler(PLANE, dies_after=10), samplers=["ddim"])
    second = FakeSampler(PLANE)
    study(tmp_path, second, samplers=["ddim"])
    assert second.drawn == 6
    for row in rows_of(tmp_path):
        assert row["timed_samples"] == "8"
        assert float(row["seconds_per_sample"]) == pytest.approx(SPEED * int(row["steps"]))
    before, third = rows_of(tmp_path), FakeSampler(PLANE)
    study(tmp_path, third, samplers=["ddim"])
    assert third.drawn == 0
    assert rows_of(tmp_path) == before
    study(tmp_path, third, samplers=["ddim"], num_samples=6)
    assert third.drawn == 0
    assert {row["samples"] for row in rows_of(tmp_path)} == {"6"}


def test_a_later_call_extends_the_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    real_images(tmp_path / "real", PLANE)
    study(tmp_path, FakeSampler(PLANE), samplers=["dpmpp"], steps=[4])
    study(tmp_path, FakeSampler(PLANE), samplers=["ddim"], steps=[2])
    assert [(row["sampler"], row["steps"]) for row in rows_of(tmp_path)] == [("ddim", "2"), ("dpmpp", "4")]
    assert "left out" not in caplog.text
    study(tmp_path, FakeSampler(PLANE), samplers=["ddim"], steps=[4], options={"guidance_scale": 2})
    assert [(row["sampler"], row["steps"]) for row in rows_of(tmp_path)] == [("ddim", "4")]
    assert "2 arms of an earlier study here are left out" in caplog.text


def test_real_images_need_the_voxels_of_the_run(tmp_path: Path) -> None:
    class Coarse(FakeSampler):
        def prepare(self, options: Mapping[str, Any]) -> SampleFormat:
            return replace(super().prepare(options), spacing=(1.0, 1.0, 2.0))

    real_images(tmp_path / "real", SIZE)
    with pytest.raises(UserError, match=r"voxels of the run's spacing, 1 x 1 x 2 mm.*1 x 1 x 1 mm"):
        study(tmp_path, Coarse())


@pytest.mark.parametrize(
    ("done", "message"),
    [
        ({"foreground_crop": 0}, "foreground_crop"),
        ({"halves": True, "histogram_standardization": True}, "halves, histogram_standardization"),
        ({"percentiles": [1, 99]}, r"percentiles \(1, 99\)"),
    ],
)
def test_a_run_with_preprocessing_that_the_study_does_not_have_is_refused(done: dict[str, Any], message: str) -> None:
    class Plain(dict[str, Any]):
        intensity = "percentile"

    plain = {"foreground_crop": None, "halves": False, "histogram_standardization": False, "percentiles": [0.5, 99.5]}
    check_plain(Plain(plain))
    with pytest.raises(UserError, match=f"can not prepare real images as this run did.*{message}"):
        check_plain(Plain({**plain, **done}))


def test_samples_of_unknown_time_are_measured_and_said(tmp_path: Path) -> None:
    real_images(tmp_path / "real", PLANE)
    sampler = FakeSampler(PLANE)
    sampler.draw({"output_dir": tmp_path / "out/samples/ddim_5", "num_samples": 8, "num_steps": 5}, lambda _: None)
    table = study(tmp_path, sampler, samplers=["ddim"], steps=[5]).read_text(encoding="utf-8")
    assert "| ddim | 5 | not timed |" in table
    assert timing(tmp_path / "none.json") == {"seconds_per_sample": None, "timed_samples": 0, "device": ""}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samplers": ["dimm"]}, "must be one of ddpm.*Did you mean ddim"),
        ({"samplers": ["ddim", "ddim"]}, "needs samplers, each once"),
        ({"steps": []}, "needs steps, each once"),
        ({"steps": [0, 5]}, "must be at least 1"),
        ({"steps": [101]}, "at most the 100 timesteps"),
        ({"num_samples": 3}, "at least 4 samples"),
        ({"options": {"sampler": "ddim"}}, "sets these options of the bundle itself"),
        ({"features": "randm"}, "Did you mean random"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    real_images(tmp_path / "real", PLANE)
    runner = FakeSampler(PLANE)
    with pytest.raises(UserError, match=message):
        study(tmp_path, runner, **given)
    assert runner.drawn == 0


def test_the_bundle_and_the_folders_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--real must be an existing folder"):
        study(tmp_path, FakeSampler(PLANE))
    with pytest.raises(UserError, match="--output must not lie in a folder of images"):
        run_sampling_study(BUNDLE, tmp_path, tmp_path, tmp_path / "out", runner=FakeSampler(PLANE))
    with pytest.raises(UserError, match="bundle of a diffusion model"):
        BundleSampler(BUNDLE.parent / "swin_unetr_finetune")
    words = ["--run_dir", str(tmp_path / "no"), "--real", str(tmp_path / "real"), "--output", str(tmp_path / "out")]
    parsed, rest = build_parser("study").parse_known_args(["study", "sampling-steps", *words])
    parsed.options = rest
    with pytest.raises(UserError, match=r"a checkpoint must exist.*no/models"):
        run_sampling_steps(parsed)


def test_a_trained_run_is_sampled_and_timed(trained: Path, tmp_path: Path) -> None:
    run_sampling_study(
        BUNDLE, trained, trained / "data", tmp_path / "out", ["ddim"], [2, 4], 4, options={"device": "cpu", "seed": 3}
    )
    rows = rows_of(tmp_path)
    assert [row["timed_samples"] for row in rows] == ["4", "4"]
    assert all(float(row["seconds_per_sample"]) > 0 and row["device"].startswith("cpu with") for row in rows)
    sidecar = json.loads((tmp_path / "out" / "samples" / "ddim_2" / "sample_6.json").read_text(encoding="utf-8"))
    assert (sidecar["sampler"], sidecar["num_steps"]) == ("ddim", 2)
    record = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    assert record["real"]["protocol"]["intensity"] == {"mode": "window", "lower": -1000.0, "upper": 1000.0}
    with pytest.raises(UserError, match="at most the 8 timesteps"):
        run_sampling_study(BUNDLE, trained, trained / "data", tmp_path / "out", ["ddim"], [9], 4)


@pytest.mark.parametrize("size", [SIZE, PLANE])
@pytest.mark.parametrize("intensity", ["window", "percentile"])
def test_written_samples_are_read_back_as_the_network_made_them(
    tmp_path: Path, size: tuple[int, int, int], intensity: str
) -> None:
    window = (-1000.0, 1000.0)
    limits = window if intensity == "window" else (0.5, 99.5)
    planar = size[2] == 1
    writer = SampleWriter(tmp_path, IntensityScaling(intensity, *limits), (1, 1, 1), {}, png_bits=8 if planar else None)
    image = smooth(0, size)
    writer.write(0, image)
    mode, limits_read = intensity_of_samples(planar, intensity, window)
    torch.testing.assert_close(ImageSet(tmp_path, mode, limits_read)[0], image, atol=0.005, rtol=0)


def test_axes_are_round_and_hold_the_values() -> None:
    for low, high in ((0.61, 0.83), (-0.002, 0.0004), (3.0, 250.0), (0.5, 0.5), (0.0, 0.0)):
        first, last, step = value_axis(low, high)
        assert first <= low + 1e-12
        assert last >= high - 1e-12
        assert 1 <= round((last - first) / step) <= 9
    assert round_numbers(0.3, 4.2) == [0.2, 0.5, 1.0, 2.0, 5.0]
    flat = draw_lines({"a": [Point(1, 0.0)]}, "", "", {1: "1"}, floor=0.0)
    assert flat.shape[2] == 3
