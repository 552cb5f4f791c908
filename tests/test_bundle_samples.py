"""``evaluate.json`` with ``samples_dir``: a run's samples against its own held-out and training images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bundle_runs import TINY_TRAINING, run
from monai.transforms import Compose
from torch import Tensor

from medical_diffusion.bundle.sample_evaluation import GENERATOR, RunImages, SampleEvaluation, Samples
from medical_diffusion.data.preprocessing import IntensityScaling
from medical_diffusion.errors import UserError, find_user_error
from medical_diffusion.evaluation.report import Labels
from medical_diffusion.synthesis import ClassLabels, SampleWriter

CLASSES = ("healthy", "ill")
VOLUME, IMAGE = (12, 16, 10), (20, 17, 1)
TRAIN, HELD_OUT = 30, 20


def evaluate(trained: Path, **options: Any) -> None:
    run("evaluate", run_dir=str(trained), device="cpu", num_phantoms=TINY_TRAINING["num_phantoms"], **options)


def test_samples_of_a_run_are_reported_beside_its_reconstruction(trained: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    run("inference", run_dir=str(trained), output_dir=str(samples), num_samples=4, device="cpu")
    evaluate(trained)
    assert not (trained / "reports" / "samples").exists()
    evaluate(trained, samples_dir=str(samples))
    folder = trained / "reports" / "samples"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["generators"][GENERATOR]["images"] == 4
    assert report["real"]["images"] == 1
    assert report["real"]["relation"].startswith("held out")
    figures = report["generators"][GENERATOR]["figures"]
    assert figures["high_frequency_ratio"]["value"] > 0
    assert "at least 2 real images" in figures["fid"]["reason"]
    assert report["protocol"]["extractor"]["extractor"] == "random"
    assert "the images have no classes" in report["utility"]["reason"]
    assert (folder / "report.html").is_file()
    assert json.loads((trained / "reports" / "reconstruction.json").read_text(encoding="utf-8"))["volumes"] == 1


def test_samples_that_can_not_be_measured_are_refused_first(trained: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"samples_dir": str(tmp_path / "none")}, "must be an existing folder"),
        ({"samples_dir": str(trained / "data"), "features": "randm"}, "Did you mean random"),
    ):
        with pytest.raises(RuntimeError) as failure:
            evaluate(trained, **options)
        assert message in str(find_user_error(failure.value))


def smooth(count: int, size: tuple[int, int, int], seed: int) -> Tensor:
    images = torch.randn(count + 1, 1, *size, generator=torch.Generator().manual_seed(seed))
    images[0] = torch.randn(1, *size, generator=torch.Generator().manual_seed(99))
    for axis in (2, 3, 4):
        images = (images + images.roll(1, axis)) / 2 if size[axis - 2] > 1 else images
    images = images[1:] + images[:1]
    images[1::2, :, 4:9, 5:10] += 0.8  # the ill ones
    return (0.6 * images).clamp(-1, 1)


class Run:
    """What :class:`SampleEvaluation` needs of a run, with images from memory."""

    def __init__(self, root: Path, size: tuple[int, int, int], orientation: str, classes: tuple[str, ...] = ()) -> None:
        self.train, held_out = smooth(TRAIN, size, 0), smooth(HELD_OUT, size, 1)
        images = torch.cat([self.train, held_out])
        items = [{"image": n, "class_label": n % 2} for n in range(len(images))]
        parts = (items[:TRAIN], items[TRAIN : TRAIN + 8], items[TRAIN + 8 :])
        self.data = SimpleNamespace(
            lists=SimpleNamespace(train=parts[0], validation=parts[1], test=parts[2]),
            transform=Compose([lambda item: {"image": images[item["image"]]}]),
            cache_dir=root / "cache" / "volumes",
            class_names=classes,
            labels_of=lambda part: [item["class_label"] for item in part] if classes else None,
        )
        self.settings = SimpleNamespace(
            samples_dir=str(root / "samples"), features="random", planar=size[2] == 1, channels=1, seed=0,
            image_size=list(size), orientation=orientation, intensity="minmax", window=[0, 1], dataset_dir="given",
            of_stage=lambda stage: {"image_size": size},
        )  # fmt: skip
        self.folders = SimpleNamespace(cache=root / "cache", reports=root / "reports")
        labels = ClassLabels(classes, [0.5, 0.5]) if classes else None
        bits = 16 if size[2] == 1 else None
        scaling = IntensityScaling("minmax")
        self.writer = SampleWriter(root / "samples", scaling, (1, 2, 3), {}, labels, bits, orientation)

    def evaluation(self) -> SampleEvaluation:
        return SampleEvaluation(self.settings, self.data, self.folders, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "orientation"), [(VOLUME, "RAS"), (VOLUME, "ASR"), (VOLUME, "LIP"), (IMAGE, "RAS")])
def test_copies_of_training_images_are_found(tmp_path: Path, size: tuple[int, int, int], orientation: str) -> None:
    made = Run(tmp_path, size, orientation)
    new = smooth(6, size, 2)
    for seed, image in enumerate([*new, *made.train[3:7]]):
        made.writer.write(seed, image)
    evaluation = made.evaluation()
    evaluation.check()
    for n, image in enumerate(new):
        torch.testing.assert_close(evaluation._samples[n], image, atol=1e-3, rtol=0)
    report = evaluation.run()
    assert report is not None
    result = report["generators"][GENERATOR]
    assert result["flagged"] == 4
    copies = [p for p in result["nearest"] if p["copy"]]
    assert sorted(p["training_image"] for p in copies) == [3, 4, 5, 6]
    assert sorted(p["training_name"] for p in copies) == ["3", "4", "5", "6"]
    assert all(p["sample_name"].startswith("sample_") for p in copies)
    assert report["real"]["images"] == HELD_OUT
    assert abs(result["figures"]["kid"]["value"]) < 1


def test_classes_in_the_sidecars_give_the_utility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medical_diffusion.bundle.sample_evaluation.Labels", partial(Labels, steps=5))
    made = Run(tmp_path, IMAGE, "RAS", CLASSES)
    for seed, image in enumerate(smooth(10, IMAGE, 2)):
        made.writer.write(seed, image)
    report = made.evaluation().run()
    assert report is not None
    assert report["generators"][GENERATOR]["figures"]["auroc_synthetic"]["n"] == HELD_OUT
    assert report["utility"]["classes"] == list(CLASSES)


def test_one_class_of_samples_leaves_the_utility_out(tmp_path: Path) -> None:
    made = Run(tmp_path, IMAGE, "RAS", CLASSES)
    for seed, image in enumerate(smooth(5, IMAGE, 2)):
        made.writer.write(seed, image)
        sidecar = made.writer.sidecar_path(seed)
        sidecar.write_text(json.dumps({"class_name": "ill"}))
    labels, reason = made.evaluation()._labels()
    assert labels is None
    assert "none of healthy in samples" in reason


def test_samples_of_another_size_are_refused(tmp_path: Path) -> None:
    made = Run(tmp_path, VOLUME, "RAS")
    made.writer.write(0, smooth(1, (12, 16, 9), 0)[0])
    with pytest.raises(UserError, match=r"must have its size \(12, 16, 10\)"):
        made.evaluation().check()


@pytest.mark.parametrize(("size", "orientation"), [(VOLUME, "LIP"), (IMAGE, "RAS")])
def test_a_sample_that_is_an_image_of_the_run_has_its_key(
    tmp_path: Path, size: tuple[int, int, int], orientation: str
) -> None:
    made = Run(tmp_path, size, orientation)
    for seed, image in enumerate(smooth(3, size, 2)):
        made.writer.write(seed, image)
    samples = Samples(made.evaluation().samples, orientation)
    made.data.transform = Compose([lambda item: {"image": samples[item["image"]]}])
    assert RunImages(made.data, made.data.lists.train[:3], "training").keys == samples.keys  # type: ignore[arg-type]
    assert len(set(samples.keys)) == 3


def test_equal_images_have_equal_keys(tmp_path: Path) -> None:
    made = Run(tmp_path, IMAGE, "RAS")
    first = RunImages(made.data, made.data.lists.train, "training")  # type: ignore[arg-type]
    again = RunImages(made.data, made.data.lists.train[2:], "training")  # type: ignore[arg-type]
    assert first.keys[2:] == again.keys
    assert len(set(first.keys)) == TRAIN
