"""Crops, augmentation and the step of fine-tuning: drawn by seed and place alone, image and label together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.bundle.segmentation.segmenter import MOST_LOGITS, window_inferer
from medical_diffusion.data import CropDataset, SampleForegroundd, SegmentationAugmentation, StepLoader, flip_axes
from medical_diffusion.data.preprocessing.labels import EncodeLabelsd
from medical_diffusion.data.torchio_augmentation import PROBABILITIES
from medical_diffusion.errors import UserError
from medical_diffusion.training import SegmentationStep, StageCheckpoint, StepTrainer, parameter_groups

SHAPES = [(1, 17, 12, 9), (1, 20, 14, 1)]


def volume(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A volume whose image tells its label: bright where the label is."""
    label = torch.zeros((1, *shape[1:]), dtype=torch.uint8)
    label[:, 2:5, 2:6] = 1
    label[:, 9:11, 3:9] = 2
    image = label.float() / 2 * 2 - 1
    return SampleForegroundd("label")({"image": image.expand(shape).clone(), "label": label})


def test_values_become_channels_and_the_rest_background() -> None:
    labels = torch.tensor([0.0, 3.0, 7.0, 2.0]).reshape(1, 4, 1, 1)
    encoded = EncodeLabelsd("label", [7, 2])({"label": labels})["label"]
    assert encoded.flatten().tolist() == [0, 0, 1, 2] and encoded.dtype == torch.uint8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crop", ["random", "center"])
def test_crops_have_their_size_and_keep_image_and_label_together(shape: tuple[int, ...], crop: str) -> None:
    size = [8, 16, 4 if shape[-1] > 1 else 1]
    crops = CropDataset([volume(shape)], size, crop=crop)
    for place in range(10):
        item = crops[0, place]
        assert item["image"].shape == item["label"].shape == (1, *size)
        inside = item["image"] > -1
        torch.testing.assert_close(item["label"][inside].float(), item["image"][inside] + 1)
        assert not item["label"][~inside].any()


def test_a_share_of_the_random_crops_holds_foreground_and_every_class_comes() -> None:
    item = volume((1, 40, 40, 40))
    sure = CropDataset([item], 8, foreground_share=1.0)
    crops = [sure[0, place]["label"] for place in range(30)]
    assert all(bool(crop.any()) for crop in crops)
    assert {int(v) for crop in crops for v in crop.unique()} == {0, 1, 2}
    chance = CropDataset([item], 8, foreground_share=0.0)
    assert not all(bool(chance[0, place]["label"].any()) for place in range(30))


def test_a_volume_without_foreground_is_cropped_anywhere() -> None:
    empty = {"image": torch.zeros(1, 20, 9, 9), "label": torch.zeros(1, 20, 9, 9, dtype=torch.uint8)}
    crops = CropDataset([SampleForegroundd("label")(empty)], 8, foreground_share=1.0)
    assert crops[0, 3]["image"].shape == (1, 8, 8, 8)


def test_a_crop_depends_on_seed_and_place_alone() -> None:
    item = volume((1, 40, 40, 40))
    first, again = (CropDataset([item], 8, augmentation=SegmentationAugmentation()) for _ in range(2))
    torch.manual_seed(5)
    expected = first[0, 7]
    torch.manual_seed(6)
    _ = again[0, 2]
    found = again[0, 7]
    assert torch.equal(expected["image"], found["image"]) and torch.equal(expected["label"], found["label"])
    assert not torch.equal(expected["image"], again[0, 8]["image"])
    assert not torch.equal(expected["image"], CropDataset([item], 8, seed=1)[0, 7]["image"])


def test_memory_keeps_what_fits_and_reads_the_rest_again() -> None:
    class Counting(list):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            type(self).reads += 1
            return super().__getitem__(index)

    kept = CropDataset(Counting([volume((1, 9, 9, 9))]), 8)
    _ = [kept[0, place] for place in range(3)]
    assert Counting.reads <= 3
    seen = Counting.reads
    _ = kept[0, 4]
    assert Counting.reads == seen
    _ = CropDataset(Counting([volume((1, 9, 9, 9))]), 8, cache_gb=0)[0, 0]
    assert Counting.reads > seen


def test_an_unknown_crop_is_told() -> None:
    with pytest.raises(UserError, match="crop must be one of random, center"):
        CropDataset([volume(SHAPES[0])], 8, crop="centre")


def test_batches_know_their_place_whatever_the_rank() -> None:
    items = CropDataset([volume((1, 20, 20, 20))] * 3, 8)
    loader = StepLoader(items, batch_size=2, positions=True)
    assert [place for step in range(3) for _, place in loader.steps.batch(step)] == list(range(6))
    ranks = [StepLoader(items, 2, rank=r, world_size=2, positions=True).steps.batch(1) for r in (0, 1)]
    assert [place for batch in ranks for _, place in batch] == [4, 5, 6, 7]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*PROBABILITIES, "flip"])
def test_each_augmentation_alone(shape: tuple[int, ...], name: str) -> None:
    item = volume(shape)
    planar = shape[-1] == 1
    image, label = item["image"] * 0.8, item["label"]
    only = {other: float(other == name) for other in PROBABILITIES}
    augmentation = SegmentationAugmentation((0,) if name == "flip" else (), only, planar=planar)
    results = [augmentation(image, label, seed) for seed in range(4)]
    assert any(not torch.equal(changed, image) for changed, _ in results)
    for changed, moved in results:
        assert changed.shape == image.shape and moved.shape == label.shape and moved.dtype == label.dtype
        assert changed.abs().max() <= 1 and set(moved.unique().tolist()) <= {0, 1, 2}, "the map by nearest neighbour"
        if name not in ("affine", "flip"):
            assert torch.equal(moved, label)
    if name == "flip":
        assert any(torch.equal(moved, label.flip(1)) for _, moved in results)
    if name == "affine":  # what moves in the image moves in the map
        changed, moved = next(r for r in results if not torch.equal(r[1], label))
        assert changed[moved == 0].mean() < changed[moved > 0].mean() - 0.3


def test_thick_slices_are_turned_as_what_they_show() -> None:
    """A rod along the depth of thick slices, turned about the first axis, moves by fewer slices than rows."""
    label = torch.zeros((1, 4, 41, 41), dtype=torch.uint8)
    label[..., 20, :] = 1
    only = {name: float(name == "affine") for name in PROBABILITIES}
    augmentation = SegmentationAugmentation((), only)

    def slope(spacing: tuple[float, float, float], seed: int) -> float:
        """Rows by which the rod rises in a slice."""
        moved = augmentation(label.float() * 2 - 1, label, seed, spacing)[1][0, 2]
        rows, slices = (values.double() for values in torch.nonzero(moved, as_tuple=True))
        centred = slices - slices.mean()
        return float((centred * rows).sum() / (centred**2).sum())

    seed = max(range(6), key=lambda n: abs(slope((1.0, 1.0, 1.0), n)))
    thin, thick = slope((1.0, 1.0, 1.0), seed), slope((1.0, 1.0, 5.0), seed)
    assert abs(thin) > 0.03 and thick / thin == pytest.approx(5, rel=0.25), "one angle is more rows in a thick slice"
    assert slope((0.5, 0.5, 2.5), seed) == thick, "the unit does not matter"


def test_crops_tell_augmentation_the_voxel_size_and_read_each_volume_once() -> None:
    read: list[int] = []

    class Counting(list):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    told: list[Any] = []

    def augmentation(image: Tensor, label: Tensor, seed: int, spacing: Any = None) -> tuple[Tensor, Tensor]:
        told.append(spacing)
        return image, label

    items = Counting([{**volume(SHAPES[0]), "spacing": torch.tensor([1.0, 1.0, 5.0])}, volume(SHAPES[0])])
    crops = CropDataset(items, 8, augmentation=augmentation, cache_gb=0.0)
    for index in (0, 1):
        _ = crops[index, 3]
    assert told == [[1.0, 1.0, 5.0], None] and read == [0, 1]


def test_logits_of_large_volumes_leave_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert window_inferer((8, 8, 8), 0.5, channels=4).cpu_thresh == MOST_LOGITS // 4
    asked: list[Any] = []

    def swept(*arguments: Any, **_: Any) -> Tensor:
        asked.append(arguments[10])
        return arguments[0]

    monkeypatch.setattr("monai.inferers.inferer.sliding_window_inference", swept)
    inferer = window_inferer((8, 8, 8), 0.5, channels=MOST_LOGITS // 1000)
    for edge in (9, 11):
        inferer(torch.zeros(1, 1, edge, edge, edge), lambda x: x)
    assert asked == [None, "cpu"]


def test_flips_name_anatomical_axes() -> None:
    assert flip_axes(["left-right"], "RAS") == (0,) and flip_axes(["left-right"], "ASR") == (2,)
    assert flip_axes(["inferior-superior", "anterior-posterior"], "RAS") == (1, 2)
    assert flip_axes(["left-right"], "RAS", planar=True) == (1,)
    with pytest.raises(UserError, match=r"anatomical axes.*Did you mean left-right"):
        flip_axes(["leftright"], "RAS")
    with pytest.raises(UserError, match=r"augmentation must be a known one.*gamma"):
        SegmentationAugmentation(probabilities={"gama": 1.0})


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(1, 4, 1)
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


def tiny_step(**options: Any) -> SegmentationStep:
    torch.manual_seed(0)
    network = Tiny()
    return SegmentationStep(network, torch.optim.AdamW(network.parameters(), 0.05), **options)


@pytest.mark.parametrize("amp", ["none", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_step_learns(shape: tuple[int, ...], amp: str) -> None:
    step, item = tiny_step(amp=amp), volume(shape)
    image, label = item["image"][None].repeat(2, 1, 1, 1, 1), item["label"][None].long().repeat(2, 1, 1, 1, 1)
    losses = [float(step(image, n, label)["loss"]) for n in range(30)]
    assert losses[-1] < 0.6 * losses[0]


def test_transferred_layers_learn_at_a_lower_rate_and_none_is_frozen() -> None:
    network = Tiny()
    groups = parameter_groups(network, {"body.weight", "body.bias"}, 0.1, 0.5)
    assert {g["lr"]: len(g["params"]) for g in groups} == {0.05: 2, 0.1: 2}
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in network.parameters())
    assert [g["lr"] for g in parameter_groups(network, (), 0.1, 0.5)] == [0.1]
    with pytest.raises(UserError, match="transferred layers must learn too"):
        parameter_groups(network, (), 0.1, 0.0)
    with pytest.raises(UserError, match="max_gradient_norm must be positive"):
        tiny_step(max_gradient_norm=0)


class Figures:
    """Stands for a validation: gives the next of a list of figures after every second step."""

    def __init__(self, figures: list[float]) -> None:
        self.figures = figures

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), self._record)

    def _record(self, engine: Any) -> None:
        engine.record_validation(self.figures[engine.state.iteration // 2 - 1])


def trainer(folder: Path, step: SegmentationStep, steps: int, figures: list[float]) -> StepTrainer:
    checkpoint = StageCheckpoint(folder, "model", "same", {}, keep_best=True)
    loader = StepLoader(CropDataset([volume((1, 12, 12, 9))] * 2, 8), 1, positions=True)
    return StepTrainer(
        "cpu", step, loader, steps, checkpoint, patience=4, checkpoint_interval=0, train_handlers=[Figures(figures)]
    )


def test_early_stopping_keeps_the_best_weights_and_is_finished(tmp_path: Path) -> None:
    figures = [0.9, 0.5, 0.6, 0.7, 0.1, 0.1]
    first = trainer(tmp_path, tiny_step(), 12, figures)
    first.run()
    assert (first.progress.step, first.progress.best_step, first.progress.best) == (8, 4, 0.5)
    final, best = (torch.load(tmp_path / f"model{end}.pt", weights_only=True) for end in ("", "_best"))
    last = first.step.weights()
    for name, tensor in best["model"].items():
        assert torch.equal(final["model"][name], tensor)
    assert any(not torch.equal(last[name], tensor) for name, tensor in best["model"].items())
    before = (tmp_path / "model.pt").stat().st_mtime_ns
    again = trainer(tmp_path, tiny_step(), 12, figures)
    again.run()
    assert again.progress.step == 8 and (tmp_path / "model.pt").stat().st_mtime_ns == before


def test_an_interrupted_run_stops_at_the_same_step_with_the_same_weights(tmp_path: Path) -> None:
    figures = [0.9, 0.5, 0.6, 0.7, 0.1, 0.1]
    whole = trainer(tmp_path / "whole", tiny_step(), 12, figures)
    whole.run()
    broken = trainer(tmp_path / "broken", tiny_step(), 12, figures)
    original = broken._iteration

    def die(engine: Any, batch: Any) -> Any:
        if engine.state.iteration == 6:
            raise KeyboardInterrupt
        return original(engine, batch)

    broken._process_function = die
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed = trainer(tmp_path / "broken", tiny_step(), 12, figures)
    resumed.run()
    assert resumed.progress == whole.progress
    for name, tensor in whole.step.weights().items():
        assert torch.equal(tensor, resumed.step.weights()[name])
