from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from copy_alarms import PLANTS
from torch import Tensor

from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.agreement import area_under_roc
from medical_diffusion.evaluation.copies import CopySearch, aligned
from medical_diffusion.evaluation.copy_rate import calibrate, clopper_pearson, copy_rate, stranger_threshold

SIZES = [(24, 20, 1), (17, 25, 1), (16, 20, 12), (13, 18, 5)]


def smooth(count: int, *size: int, seed: int, channels: int = 1) -> Tensor:
    """Strangers: smooth random images around one common mean."""
    noise = torch.randn(count + 1, channels, *size, generator=torch.Generator().manual_seed(seed))
    noise[0] = torch.randn(noise[0].shape, generator=torch.Generator().manual_seed(99))
    for axis in (2, 3, 4):
        for _ in range(2):
            noise = (noise + noise.roll(1, axis)) / 2 if size[axis - 2] > 1 else noise
    return torch.tanh(noise[1:] + 2 * noise[:1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", PLANTS)
def test_planted_copies_score_higher_than_strangers(kind: str, size: tuple[int, int, int]) -> None:
    training, strangers = smooth(40, *size, seed=0), smooth(20, *size, seed=1)
    search = CopySearch(training, progress=False)
    copies = torch.stack([PLANTS[kind](image) for image in training[:8]])
    found, other = search.search(copies, label=""), search.search(strangers, label="")
    assert found.indices.tolist() == list(range(8))
    assert found.scores.min() > other.scores.max()


def test_the_match_says_how_it_is_aligned() -> None:
    training = smooth(30, 24, 20, 12, seed=0)
    copy = torch.roll(training[7], (2, -1, 1), (1, 2, 3)).flip([2])
    match = CopySearch(training, progress=False).search([copy], label="")
    assert (match.indices.tolist(), match.flips) == ([7], [(1,)])
    back = aligned(copy, match.flips[0], match.shifts[0], (24, 20, 12))
    middle = (slice(None), *[slice(4, -4)] * 3)
    torch.testing.assert_close(back[middle], training[7][middle])
    assert match.correlations[0] > 0.999


def test_colour_counts() -> None:
    training = smooth(40, 16, 16, 1, seed=0, channels=3)
    search = CopySearch(training, progress=False)
    turned = training[:5][:, [2, 0, 1]]
    assert search.search(training[:5], label="").scores.min() > search.search(turned, label="").scores.max()


def test_large_images_are_compared_at_a_smaller_size() -> None:
    training = torch.nn.functional.interpolate(smooth(30, 20, 24, 1, seed=0)[..., 0], scale_factor=6)[..., None]
    search = CopySearch(training, progress=False)
    assert search.size == (32, 32, 1)
    found = search.search(training[:4] + 0.02 * torch.randn(4, 1, 120, 144, 1), label="")
    assert found.indices.tolist() == [0, 1, 2, 3]


def test_the_rate_counts_copies() -> None:
    training, strangers = smooth(60, 20, 20, 1, seed=0), smooth(60, 20, 20, 1, seed=1)
    search = CopySearch(training, progress=False)
    calibration = calibrate(search, training, strangers, progress=False)
    assert calibration.sensitivity == calibration.auroc == 1
    assert calibration.false_alarm_rate == 0.001
    assert calibration.false_alarms <= 2
    new = smooth(20, 20, 20, 1, seed=2)
    assert copy_rate(new, search, calibration, progress=False).rate == 0
    mixed = copy_rate(torch.cat([new, training[:5]]), search, calibration, progress=False)
    assert mixed.flagged.tolist() == [False] * 20 + [True] * 5
    assert mixed.rate == pytest.approx(0.2)
    assert mixed.low < mixed.rate < mixed.high


def test_without_held_out_images_training_images_are_the_strangers() -> None:
    training = smooth(60, 20, 20, 1, seed=0)
    search = CopySearch(training, progress=False)
    calibration = calibrate(search, training, None, progress=False)
    assert calibration.source.startswith("training images")
    assert copy_rate(training[:3], search, calibration, progress=False).flagged.all()
    assert not copy_rate(smooth(10, 20, 20, 1, seed=2), search, calibration, progress=False).flagged.any()


def test_relatives_of_training_images_among_the_strangers_do_not_hide_copies() -> None:
    training, strangers = smooth(60, 20, 20, 1, seed=0), smooth(60, 20, 20, 1, seed=1)
    strangers[:12] = (training[:12] + 0.05 * torch.randn(12, 1, 20, 20, 1)).clamp(-1, 1)  # a fifth
    search = CopySearch(training, progress=False)
    calibration = calibrate(search, training, strangers, progress=False)
    assert calibration.sensitivity >= 0.99
    assert copy_rate(training[:20], search, calibration, progress=False).rate == 1
    assert copy_rate(smooth(20, 20, 20, 1, seed=2), search, calibration, progress=False).rate == 0


def test_no_verdict_where_planted_copies_are_missed() -> None:
    training = smooth(60, 20, 20, 1, seed=0)
    search = CopySearch(training, progress=False)
    with pytest.raises(UserError, match=r"planted copies must be found .* strangers being held-out real images"):
        calibrate(search, training, training.clone(), progress=False)


def test_duplicates_among_the_strangers_hardly_move_the_threshold() -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0))
    plain = stranger_threshold(scores, 0.01)
    assert plain == pytest.approx(2.51, abs=0.3)
    scores[:8] = 1000.0
    assert stranger_threshold(scores, 0.01) == pytest.approx(plain, abs=0.2)


def test_clopper_pearson_agrees_with_published_values() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert clopper_pearson(4, 20) == pytest.approx((0.0573, 0.4366), abs=1e-4)
    assert clopper_pearson(10, 10)[1] == 1


def radiographs(folder: Path) -> tuple[Tensor, Tensor]:
    archive = folder / "cxr_pneumoniamnist28" / "pneumoniamnist_dev.npz"
    if not archive.is_file():
        pytest.skip("no PneumoniaMNIST archive among the real images")
    arrays = np.load(archive)
    training, held_out = (torch.from_numpy(arrays[f"{n}_images"]) for n in ("train", "val"))
    known = {image.numpy().tobytes() for image in training}  # the archive holds some images twice
    held_out = held_out[[image.numpy().tobytes() not in known for image in held_out]]
    scaled = [images[:, None, :, :, None].float() / 127.5 - 1 for images in (training, held_out)]
    return scaled[0], scaled[1]


def hippocampi(folder: Path) -> tuple[Tensor, Tensor]:
    volumes = ImageSet(folder / "hippocampus" / "images", image_size=(16, 24, 16), limit=66)
    stacked = torch.stack(list(volumes))
    return stacked[::3], stacked[1::3]


@pytest.mark.parametrize(
    ("read", "trained", "held", "count"),
    [
        (radiographs, 800, 100, 16),
        pytest.param(radiographs, None, 300, 60, marks=pytest.mark.slow),
        (hippocampi, None, None, 6),
    ],
)
def test_planted_copies_of_real_images_are_told_from_held_out_ones(
    data_folder: Path,
    read: Callable[[Path], tuple[Tensor, Tensor]],
    trained: int | None,
    held: int | None,
    count: int,
) -> None:
    training, held_out = (images[:most] for images, most in zip(read(data_folder), (trained, held), strict=True))
    search = CopySearch(training, progress=False)
    strangers = search.search(held_out, label="").scores
    threshold = stranger_threshold(strangers, 0.01)
    assert (strangers > threshold).float().mean() <= 0.03
    for kind, plant in list(PLANTS.items())[:5]:
        found = search.search([plant(image) for image in training[:count]], label="").scores
        scores = torch.cat([found, strangers]).numpy()
        assert area_under_roc(scores, np.arange(len(scores)) < count) >= 0.99, kind


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: CopySearch(x[:2], False), "at least three training images"),
        (lambda x: CopySearch(x[:1].repeat(4, 1, 1, 1, 1), False), "training images that differ"),
        (lambda x: CopySearch(x, False).search(x[:0]), "at least one image"),
        (lambda x: CopySearch(x, False).search(x[..., :5, :]), "training images' shape"),
        (lambda x: calibrate(CopySearch(x, False), x, x[:5], progress=False), "at least 10 real images"),
    ],
)
def test_bad_calls_are_named(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(smooth(12, 9, 10, 1, seed=0))
