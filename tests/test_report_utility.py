from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from report_images import smooth, write

from medical_diffusion.__main__ import main
from medical_diffusion.cli.evaluate import labels_of_sets
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import Interval
from medical_diffusion.evaluation.report.notes import utility_note
from medical_diffusion.evaluation.report.utility import NOT_MEASURED, Labels, spread, utility_figures


def classed(folder: Path, count: int, seed: int, contrast: int = 60) -> Path:
    """Images in folders of their class: "ill" ones are brighter in the middle."""
    images = smooth(count, seed).astype(int)
    images[: count // 2, 10:22, 8:20] += contrast
    images = np.clip(images, 0, 255).astype(np.uint8)
    write(folder / "ill", images[: count // 2])
    write(folder / "healthy", images[count // 2 :])
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    classed(root / "train", 40, 0)
    classed(root / "real", 24, 1)
    classed(root / "good", 24, 2)
    blank = write(root / "blank", smooth(24, 3))
    for n, path in enumerate(sorted(blank.glob("*.png"))):
        path.with_suffix(".json").write_text(json.dumps({"class_name": "ill" if n % 2 else "healthy"}))
    return root


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_samples_that_show_their_class_teach_it(labelled: Path, tmp_path: Path) -> None:
    words = ["--real", labelled / "real", "--train", labelled / "train", "--synthetic", labelled / "good"]
    words += ["--synthetic", labelled / "blank", "--labels", "folders", "--labels", "blank=sidecars"]
    assert evaluate(*words, "--utility_steps", 25, "--output", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    area = {name: entry["figures"]["auroc_synthetic"] for name, entry in report["generators"].items()}
    assert area["good"]["value"] > 0.9
    assert area["good"]["low"] <= area["good"]["value"] <= area["good"]["high"]
    assert area["blank"]["value"] < 0.75
    real = report["generators"]["good"]["figures"]["auroc_real"]
    assert real["value"] > 0.9
    assert real["n"] == 24
    assert {real["n_train"], area["good"]["n_train"], area["blank"]["n_train"]} == {24}
    assert report["utility"]["classes"] == ["healthy", "ill"]
    assert "| auroc_synthetic |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "AUROC of classifiers of healthy, ill on 24 real images" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


class Set(list[torch.Tensor]):
    """Images of one class or the other, with keys."""

    def __init__(self, count: int, seed: int, depth: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = 0.3 * torch.randn(count, 1, 10, 9, depth, generator=generator)
        images[1::2, :, 3:7, 3:7] += 0.8
        super().__init__(images.clamp(-1, 1))
        self.keys = [f"{seed} {n}" for n in range(count)]
        self.names = ["ill" if n % 2 else "healthy" for n in range(count)]


@pytest.mark.parametrize("depth", [1, 4])
def test_all_classifiers_learn_from_as_many_images_and_are_tested_on_others(depth: int) -> None:
    sets = {"real": Set(30, 0, depth), "train": Set(20, 1, depth), "gan": Set(12, 2, depth)}
    sets["real"].keys[:4] = sets["train"].keys[:4]
    figures, common = utility_figures(sets, Labels({name: s.names for name, s in sets.items()}, 25))
    assert common["n_train"] == figures["train"]["n_train"] == figures["gan"]["n_train"] == 12
    assert figures["gan"]["n"] == common["n_test"] == 26
    assert figures["train"]["value"] > 0.9
    assert figures["gan"]["value"] > 0.9


def test_real_images_are_called_held_out_only_where_training_images_are_known() -> None:
    sets = {"real": Set(8, 0), "gan": Set(8, 2)}
    _, common = utility_figures(sets, Labels({name: s.names for name, s in sets.items()}, 1))
    assert "on 8 real images (not known whether they were trained on)" in utility_note(common)
    sets["train"] = Set(8, 1)
    _, common = utility_figures(sets, Labels({name: s.names for name, s in sets.items()}, 1))
    assert "on 8 real images that are no training images" in utility_note(common)


def test_sets_without_labels_and_tests_on_training_images_are_left_out() -> None:
    sets = {"real": Set(8, 0), "train": Set(8, 1), "gan": Set(8, 2), "bare": Set(8, 3)}
    labels = Labels({name: sets[name].names for name in ("real", "gan")}, 1)
    figures, _ = utility_figures(sets, labels)
    assert "no labels of bare were given" in figures["bare"]["reason"]
    assert "no labels of train were given" in figures["train"]["reason"]
    assert figures["gan"]["value"] is not None
    sets["train"].keys[:] = sets["real"].keys
    figures, common = utility_figures(sets, labels)
    assert "every real image is a training image" in figures["gan"]["reason"]
    assert "held-out" in utility_note(common)
    assert "no labels were given" in utility_note({"reason": NOT_MEASURED})


def test_nothing_is_said_of_classifiers_where_none_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"real": Set(8, 0), "gan": Set(8, 2)}
    figures, common = utility_figures(sets, Labels({"real": sets["real"].names}, 1))
    assert "no labels of gan were given" in figures["gan"]["reason"]
    assert "Utility was not measured: no labels were given but those of the real images" in utility_note(common)

    def fail(*_: object) -> None:
        raise UserError("a classifier must learn", "nothing")

    monkeypatch.setattr("medical_diffusion.evaluation.report.utility.utility_auroc", fail)
    _, common = utility_figures(sets, Labels({name: s.names for name, s in sets.items()}, 1))
    assert "Utility was not measured: gan: a classifier must learn" in utility_note(common)


def test_no_more_images_are_held_than_their_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"real": Set(30, 0), "train": Set(40, 1), "gan": Set(48, 2)}
    sets["gan"].names = ["ill" if n % 4 == 0 else "healthy" for n in range(48)]
    for images in sets.values():
        images[:] = [torch.randn(1, 96, 40, 1) for _ in images]
    monkeypatch.setattr("medical_diffusion.evaluation.report.utility.MOST_BYTES", 12 * 64 * 40 * 4)
    held = []

    def watch(images: torch.Tensor, labels: list[int], test: torch.Tensor, truth: list[int], *_: object) -> Interval:
        held.append((len(images), labels.count(1), len(test), truth.count(1)))
        return Interval(0.5, 0.4, 0.6, len(test))

    monkeypatch.setattr("medical_diffusion.evaluation.report.utility.utility_auroc", watch)
    figures, common = utility_figures(sets, Labels({name: s.names for name, s in sets.items()}))
    assert held == [(12, 6, 12, 6), (12, 3, 12, 6)], "classes keep their shares"
    assert common["n_train"] == common["n_test"] == figures["gan"]["n_train"] == 12


def test_large_images_are_reduced() -> None:
    sets = {"real": Set(4, 0), "gan": Set(4, 1)}
    for images in sets.values():
        images[:] = [torch.randn(1, 96, 40, 1) for _ in images]
    _, common = utility_figures(sets, Labels({name: s.names for name, s in sets.items()}, 1))
    assert common["size"] == [64, 40, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "folders"], "every image must lie in the folder of its class|every image must have a label"),
        (["--labels", "real=folders", "--labels", "blank=folder.csv"], "folder.csv"),
        (["--real", "train/ill", "--labels", "real=one.csv"], "at least two classes.*ill alone"),
        (["--labels", "real=folders", "--labels", "blnk=sidecars"], "real, train or the name.*Did you mean blank"),
        (["--labels", "blank=sidecars"], "needs the classes of the real images"),
        (["--labels", "real=folders", "--labels", "blank=sidecars", "--labels", "blank=folders"], "given once"),
        (["--labels", "folders", "--labels", "sidecars"], "labels of all sets are given once"),
        (["--labels", "real=folders", "--utility_steps", "0"], "at least one step"),
        (["--utility_steps", "5"], "belongs to the utility test"),
    ],
)
def test_labels_that_can_not_be_used(
    labelled: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(labelled)
    (labelled / "train" / "ill" / "one.csv").write_text("image,label\n000.png,ill\n001.png,ill\n")
    assert evaluate("--real", "real", "--synthetic", "blank", *words, "--output", tmp_path) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"real": ["a", "a"], "train": ["a"]}, "at least two classes.*a alone"),
        ({"real": ["a", "b"], "gan": ["a", "a"]}, "every class in every set.*none of b in gan"),
        ({"real": ["aye", "b"], "gan": ["ayo", "b"]}, "classes of the real images.*ayo in gan.*Did you mean aye"),
    ],
)
def test_classes_must_fit(of: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Labels(of).check()


def test_labels_are_of_all_sets_or_of_one() -> None:
    assert labels_of_sets(["folders", "gan=x.csv"], ["real", "gan"]) == {"real": "folders", "gan": "x.csv"}
    assert labels_of_sets(["gan=sidecars"], ["real", "gan"]) == {"gan": "sidecars"}


def test_fewer_images_keep_every_class() -> None:
    chosen = spread([0] * 90 + [1] * 9 + [2], 20, seed=0)
    counts = np.bincount(np.array([0] * 90 + [1] * 9 + [2])[chosen])
    assert counts[2] == 1
    assert counts[1] in (1, 2, 3)
    assert sorted(spread([0, 1, 0], 9, seed=0)) == [0, 1, 2]
