from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import voxels, write_nifti
from report_images import smooth, write

from medical_diffusion.__main__ import main
from medical_diffusion.cli.evaluate import gate, named_folders
from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.data.preprocessing import IntensityScaling
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.copy_rate import clopper_pearson, samples_to_prove
from medical_diffusion.evaluation.report.tables import BETTER
from medical_diffusion.synthesis import SampleWriter


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    training = smooth(40, 0)
    write(root / "train", training)
    write(root / "real", smooth(24, 1))
    write(root / "honest", smooth(16, 2))
    noise = np.random.default_rng(5).normal(0, 8, (4, 32, 28))
    copies = np.clip(training[:4, :, ::-1] + noise, 0, 255).astype(np.uint8)
    write(root / "copying", np.concatenate([smooth(12, 3), copies]))
    return root


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_a_report_is_complete_and_the_gate_fires(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--real", folders / "real", "--synthetic", folders / "honest", "--synthetic", f"bad={folders / 'copying'}"]
    words += ["--train", folders / "train", "--output", tmp_path, "--fail-if-memorised", 0.01]
    assert evaluate(*words) == 1
    told = capsys.readouterr().err
    assert "memorised: bad: " in told
    assert "memorised: honest" not in told
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["real"]["relation"].startswith("held out")
    for name in ("fid", "kid", "precision", "recall", "density", "coverage", "ms_ssim_synthetic", "ms_ssim_real"):
        entry = report["generators"]["honest"]["figures"][name]
        assert entry["value"] is not None
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert {"n", "seed"} <= set(entry)
    assert report["generators"]["honest"]["figures"]["copy_rate"]["value"] == 0
    bad = report["generators"]["bad"]
    assert bad["flagged"] == 4
    assert sorted(p["training_image"] for p in bad["nearest"] if p["copy"]) == [0, 1, 2, 3]
    assert len(report["protocol_hash"]) == 64
    compared = report["comparisons"][0]
    assert compared["generators"] == ["honest", "bad"]
    assert 0 < compared["p_fid"] <= 1
    assert 0 < compared["p_kid"] <= 1
    assert (tmp_path / "comparisons.csv").read_text(encoding="utf-8").count("honest,bad,") == 2
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 9
    assert "Features of bad: samples are " in page
    near = bad["figures"]["feature_copy_ratio"]
    assert near["low"] <= near["value"] <= near["high"]
    assert near["n_strangers"] == 24
    assert set(bad["figures"]) <= set(BETTER), "a figure without a word on which way is better"
    assert len(bad["nearest_in_features"]) == 10
    copied = {pair["sample"]: pair for pair in bad["nearest_in_features"] if pair["sample"] >= 12}
    assert {n: pair["training_image"] for n, pair in copied.items()} == {12: 0, 13: 1, 14: 2, 15: 3}
    assert {tuple(pair["flips"]) for pair in copied.values()} == {(1,)}
    assert "http" not in page
    assert "untrained network" in page
    for text in (page, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "Do honest and bad differ? Permutation test of FID p = " in text
    table = (tmp_path / "figures.csv").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("bad,copy_rate,") for line in table)
    assert "| fid |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "nearest_bad.png").is_file()
    with open(tmp_path / "copies.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert Counter(row["generator"] for row in rows) == {"honest": 16, "bad": 16}
    flagged = {row["sample"]: row for row in rows if row["flagged"] == "1"}
    assert {name: row["training_image"] for name, row in flagged.items()} == {
        f"{12 + n:03d}.png": f"{n:03d}.png" for n in range(4)
    }
    assert {(row["generator"], row["flips"], row["shift"]) for row in flagged.values()} == {("bad", "W", "0 0 0")}
    assert all(p["training_name"] == f"{p['training_image']:03d}.png" for p in bad["nearest"])
    assert "012.png" in page
    assert {"sample_name", "training_name"} <= set(bad["nearest_in_features"][0])


def test_generators_of_other_sizes_and_awkward_names_stay_apart(folders: Path, tmp_path: Path) -> None:
    few = write(tmp_path / "few", np.concatenate([smooth(11, 6), smooth(1, 6)]))
    names = ("a b", "a_b", "p|q")
    words = [w for name, folder in zip(names, (few, folders / "honest", few), strict=True)
             for w in ("--synthetic", f"{name}={folder}")]  # fmt: skip
    assert evaluate("--real", folders / "real", *words, "--output", tmp_path / "out") == 0
    pictures = [(tmp_path / "out" / f"{name}.png").read_bytes() for name in ("samples_a_b", "samples_a_b_2")]
    assert pictures[0] != pictures[1]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert rows[0] == r"| metric | better | a b | a_b | p\|q | real against real (halves of 12) |"
    assert rows[2] == "| images |  | 12 | 16 | 12 |  |"
    fid = next(row for row in rows if row.startswith("| fid | lower |"))
    assert re.search(r"\| [\d.]+ ± [\d.]+ \|$", fid)
    for told in (text, (tmp_path / "out" / "report.html").read_text(encoding="utf-8")):
        assert "different numbers of images (a b 12, a_b 16, p|q 12)" in told
        assert told.count("Brackets: 95 % intervals") == 1
        assert "1 images of a b are the same as another one of that set" in told


def test_a_second_run_extracts_nothing_and_gives_the_same_figures(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--real", folders / "real", "--synthetic", folders / "honest", "--output", tmp_path]
    assert evaluate(*words) == 0
    first = (tmp_path / "report.json").read_text(encoding="utf-8")

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("extracted again")

    monkeypatch.setattr("medical_diffusion.evaluation.features.random_network.RandomNetwork.features", refuse)
    assert evaluate(*words) == 0
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == first
    report = json.loads(first)
    assert "no training images were given" in report["generators"]["honest"]["figures"]["copy_rate"]["reason"]


def test_files_of_an_earlier_report_are_removed_and_no_others(folders: Path, tmp_path: Path) -> None:
    words = ["--real", folders / "real", "--synthetic", folders / "honest", "--output", tmp_path / "out"]
    more = ["--synthetic", folders / "copying", "--train", folders / "train"]
    assert evaluate(*words, *more) == 0
    old = {"copies.csv", "comparisons.csv", "samples_copying.png", "nearest_honest.png"}
    assert all((tmp_path / "out" / name).is_file() for name in old)
    (tmp_path / "out" / "mine.png").write_text("")
    (tmp_path / "beside.csv").write_text("")
    path = tmp_path / "out" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**report, "files": [*report["files"], "../beside.csv", "cache", 3]}), encoding="utf-8")
    assert evaluate(*words) == 0
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"cache", "mine.png", *json.loads(path.read_text(encoding="utf-8"))["files"]}
    assert not left & old
    assert (tmp_path / "beside.csv").is_file()


def test_the_hash_covers_what_changes_a_figure(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--real", folders / "real", "--synthetic", folders / "honest", "--max_images", 8]

    def found(*more: object) -> str:
        assert evaluate(*words, "--output", tmp_path, *more) == 0
        return json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["protocol_hash"]

    first = found()
    assert found("--synthetic", f"other={folders / 'copying'}") == first
    hashes = {first, found("--max_images", 9), found("--seed", 1)}
    changes = (("report.settings.PAIRS", 7), ("copies.NOISE_LEVELS", (0.1, 0.2)), ("feature_views.AVERAGED", 9))
    for place, value in changes:
        with monkeypatch.context() as patched:
            patched.setattr(f"medical_diffusion.evaluation.{place}", value)
            hashes.add(found())
    assert len(hashes) == 6


def test_few_images_leave_figures_out_and_overlaps_are_told(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write(tmp_path / "few", smooth(3, 2))
    (few / "broken.png").write_text("no picture")
    write(few, np.full((1, 32, 28), 7, np.uint8))
    write(few / "masks", smooth(1, 2))
    mixed = write(tmp_path / "mixed", np.concatenate([smooth(5, 4), smooth(40, 0)[:2]]))
    words = ["--real", mixed, "--synthetic", few, "--train", folders / "train", "--output", tmp_path / "out"]
    assert evaluate(*words, "--fail-if-memorised", 0.9) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    figures = report["generators"]["few"]["figures"]
    assert figures["precision"]["value"] is None
    assert "images" in figures["precision"]["reason"]
    assert report["real"]["relation"] == "mixed: 2 of 7 real images are training images"
    assert any("overlaps" in warning for warning in report["warnings"])
    assert report["constant"]["few"] == ["000.png"]
    assert "broken.png" in report["unreadable"]["few"][0]
    told = capsys.readouterr()
    assert "left out: " in told.out
    assert re.search(r"not counted: 1 files of few, the first .*masks/000.png: its folder is named as", told.out)
    assert len(report["ignored"]["few"]) == 1
    assert "not released: 1 files of few were not counted" in told.err
    assert "not released: 1 samples of few could not be read" in told.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--synthetic", "same=real"], "synthetic images must not be the real ones"),
        (["--synthetic", "honest", "--synthetic", "honest"], "generators need different names"),
        (["--synthetic", "honest", "--features", "incepton"], "Did you mean inception"),
        (["--synthetic", "honest", "--features", "medicalnet"], "medicalnet|MedicalNet"),
        (["--synthetic", "honest", "--fail-if-memorised", "0.01"], "needs the training images"),
        (["--synthetic", "honest", "--fail-if-memorised", "1"], r"must be a rate in \[0, 1\)"),
        (["--synthetic", "missing"], "--synthetic must be an existing folder"),
        (["--synthetic", "honest", "--train", "missing"], "--train must be an existing folder"),
        (["--synthetic", "honest", "--real", "missing"], "--real must be an existing folder"),
        (["--synthetic", "honest", "--real", "empty"], "--real must hold readable images"),
        (["--synthetic", "missing", "--seed", "-1"], r"--seed must be a whole number in \[0, 2\^32\).*-1"),
        (["--synthetic", "missing", "--device", "gpu"], "--device must be a device of this machine.*gpu"),
        (["--synthetic", "honest", "--image_size", "0"], "--image_size must be one or two whole numbers"),
        (["--synthetic", "honest", "--output", "honest/report"], "--output must not lie in a folder.*honest/report in"),
        (["--synthetic", "honest", "--output", "real"], "--output must not lie in a folder.*real in real"),
        (["--synthetic", "honest", "--cache_dir", "honest"], "--cache_dir must not lie in a folder of images"),
    ],
)
def test_bad_input_is_one_sentence(
    folders: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folders)
    (folders / "empty").mkdir(exist_ok=True)
    (folders / "empty" / "notes.txt").write_text("no image", encoding="utf-8")
    assert evaluate("--real", "real", "--output", tmp_path, *words) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_typo_in_the_features_is_told_before_voxels_are_read(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medical_diffusion.data.image_set.ImageSet.check_voxels", None)
    words = ["--real", folders / "real", "--synthetic", folders / "honest", "--output", tmp_path]
    assert evaluate(*words, "--features", "randm") == 1
    assert "Did you mean random" in capsys.readouterr().err


def test_relative_samples_are_told_before_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SampleWriter(tmp_path / "ours", IntensityScaling("minmax"), (1, 1, 1), {})
    for seed in range(2):
        writer.write(seed, torch.rand(1, 8, 9, 7))
        write_nifti(tmp_path / "real" / f"{seed}.nii", voxels((8, 9, 7)), np.diag([1.0, 1.0, 2.0, 1.0]))

    def stop(images: ImageSet) -> None:
        if images.folder.name == "ours":
            raise UserError("stopped", "here")

    monkeypatch.setattr(ImageSet, "check_voxels", stop)
    assert evaluate("--real", tmp_path / "real", "--synthetic", tmp_path / "ours", "--output", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "stopped" in told.err
    assert "ours: its JSON say that values are relative, 0 to 1" in told.out
    assert "real: its JSON" not in told.out


def test_a_folder_that_can_not_be_written_is_named_first(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert evaluate("--real", folders / "real", "--synthetic", folders / "honest", "--output", tmp_path / "file") == 1
    assert "output folder must be writable" in capsys.readouterr().err


def rates(flagged: int, count: int) -> dict:
    low, high = clopper_pearson(flagged, count)
    return {"gan": {"figures": {"copy_rate": {"value": flagged / count, "low": low, "high": high, "n": count}}}}


def test_the_gate_holds_what_it_has_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(rates(0, 400), 0.01, {"gan": ["a", "b", "c"], "real": ["a"]}, {}) == 1
    assert "not released: 3 samples of gan could not be read" in capsys.readouterr().err
    assert gate(rates(0, 400), 0.01, {}, {"gan": ["mask/1.png: why", "mask/2.png: why"]}) == 1
    assert "not released: 2 files of gan were not counted, the first mask/1.png: why" in capsys.readouterr().err
    assert gate(rates(0, 400), 0.01, {"gan": [], "real": ["a"]}, {"real": ["a"]}) == 0
    assert gate(rates(0, 400), None, {"gan": ["a"]}, {"gan": ["a"]}) == 0
    assert capsys.readouterr().err == ""


def test_the_gate_says_when_samples_are_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(rates(0, 40), 0.01, {}, {}) == 0
    told = capsys.readouterr().err
    assert "warning: gan: 40 samples can not prove a copy rate of at most 1 %" in told
    assert "368 samples without any copy would" in told
    assert gate(rates(0, 40), 0.0, {}, {}) == 0
    assert "no number of samples can" in capsys.readouterr().err
    assert gate(rates(0, 368), 0.01, {}, {}) == 0
    assert capsys.readouterr().err == ""


def test_a_gate_that_fires_says_how_many_strangers_would(capsys: pytest.CaptureFixture[str]) -> None:
    alarms = {"value": 0.02, "low": 0.0096, "high": 0.0365, "n": 500}
    known = {"false_alarms": alarms, "strangers": "held-out real images"}
    assert gate(rates(8, 400), 0.01, {}, {}, known) == 1
    told = capsys.readouterr().err
    assert "of 500 held-out real images 2.00 % count as copies too (95 % interval 0.96 to 3.65 %)" in told
    assert gate(rates(80, 400), 0.1, {}, {}, known) == 1
    assert "count as copies too" not in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.2, 0.98])
def test_the_samples_that_prove_a_limit_are_the_fewest(limit: float) -> None:
    count = samples_to_prove(limit)
    assert count is not None
    assert clopper_pearson(0, count)[1] <= limit
    assert count == 1 or clopper_pearson(0, count - 1)[1] > limit


def test_names_of_generators(tmp_path: Path) -> None:
    assert named_folders(["a/b", "x=c/d"]) == {"b": "a/b", "x": "c/d"}
    with pytest.raises(UserError, match="different names"):
        named_folders(["real=a"])
