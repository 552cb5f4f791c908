from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from report_images import smooth
from scipy.spatial.distance import cdist
from torch import Tensor

from medical_diffusion.data.image_set import values_hash
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import feature_copies as module
from medical_diffusion.evaluation import feature_views
from medical_diffusion.evaluation.copies import CopySearch
from medical_diffusion.evaluation.feature_copies import (
    HELD_OUT,
    LEFT_OUT,
    FeatureSearch,
    feature_copies,
    nearest_training_image,
)
from medical_diffusion.evaluation.feature_views import View, Views, view_size
from medical_diffusion.evaluation.features import create_extractor, extract_features
from medical_diffusion.evaluation.report.drawings import feature_pairs
from medical_diffusion.evaluation.report.nearness import Nearness, nearness_note


class Keyed(Sequence[Tensor]):
    """Images with the hashes of their values."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.keys = [values_hash(image) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.images[index]


def images(count: int, seed: int) -> Keyed:
    return Keyed(torch.from_numpy(smooth(count, seed)).float()[:, None, :, :, None] / 127.5 - 1)


def planted(training: Keyed, count: int) -> Keyed:
    """Copies of the first training images: moved, mirrored, of other contrast and brightness, with 5 % noise."""
    random = np.random.default_rng(4)
    found = []
    for image in training.images[:count]:
        for axis, size in ((1, 32), (2, 28)):
            image = image.index_select(axis, (torch.arange(size) + int(random.choice([-2, 2]))).clamp(0, size - 1))
        image = image.flip([[1], [2], [1, 2]][int(random.integers(3))])
        image = random.uniform(0.7, 1.3) * image + random.uniform(-0.15, 0.15)
        found.append((image + torch.from_numpy(random.normal(0, 0.1, tuple(image.shape))).float()).clamp(-1, 1))
    return Keyed(torch.stack(found))


def extract(views: Views, label: str) -> np.ndarray:
    return extract_features(views, create_extractor("random", 2), description=label)


@pytest.fixture(scope="module")
def training() -> Keyed:
    return images(40, 0)


@pytest.fixture(scope="module")
def voxels(training: Keyed) -> CopySearch:
    return CopySearch(training, progress=False)


def normal(count: int, seed: int, width: int = 12) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, width)) + 100).astype(np.float32)


@pytest.mark.parametrize("others", [False, True])
def test_distances_agree_with_a_plain_search_in_any_chunks(others: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    training = normal(40, 0)
    queries = training if others else normal(25, 1)
    plain = cdist(queries.astype(np.float64), training.astype(np.float64))
    if others:
        np.fill_diagonal(plain, np.inf)
    distances, indices = nearest_training_image(queries, training, list(range(40)) if others else None)
    np.testing.assert_allclose(distances, plain.min(1), rtol=1e-9)
    assert indices.tolist() == plain.argmin(1).tolist()


def test_new_samples_are_as_far_as_strangers_and_copies_are_not() -> None:
    def near(queries: np.ndarray) -> np.ndarray:
        return nearest_training_image(queries, normal(60, 0))[0]

    strangers = near(normal(50, 1))
    new = feature_copies(near(normal(50, 2)), strangers)
    assert new.ratio.low < 1 < new.ratio.high
    assert new.p_value > 0.05
    noise = 0.05 * np.random.default_rng(3).normal(size=(20, 12)).astype(np.float32)
    copied = feature_copies(near(np.concatenate([normal(30, 2), normal(60, 0)[:20] + noise])), strangers)
    assert copied.ratio.high < 1
    assert copied.p_value < 0.01
    assert copied.nearer >= 20
    far = feature_copies(near(normal(50, 2) + 2), strangers)
    assert far.ratio.low > 1
    assert far.nearer == 0


def test_a_copy_is_found_mirrored_moved_in_other_contrast_and_with_noise(training: Keyed, voxels: CopySearch) -> None:
    search = FeatureSearch(training, voxels, extract)
    found = search.search(planted(training, 20))
    assert found.indices.tolist() == list(range(20))
    strangers, source = search.strangers(images(15, 1))
    assert source == HELD_OUT
    assert feature_copies(found.distances, strangers.distances).ratio.high < 0.8
    matches = voxels.search(planted(training, 20), label="")
    np.testing.assert_array_equal(search.search(planted(training, 20), matches).distances, found.distances)


def test_images_in_parts_are_as_all_at_once(
    training: Keyed, voxels: CopySearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, samples = FeatureSearch(training, voxels, extract), planted(training, 7)
    matches = voxels.search(samples, label="")
    whole = [search.search(samples, matches), search.strangers(images(9, 1))[0]]
    monkeypatch.setattr(module, "PART", 3)
    for found, parts in zip(whole, [search.search(samples, matches), search.strangers(images(9, 1))[0]], strict=True):
        np.testing.assert_allclose(parts.distances, found.distances, rtol=1e-5)
        assert (parts.indices.tolist(), parts.views) == (found.indices.tolist(), found.views)
    with pytest.raises(UserError, match="at least one image"):
        search.search(Keyed(samples.images[:0]))


@pytest.mark.parametrize("flips", [(0,), (1,), (0, 1)])
def test_every_flip_is_tried_where_the_search_in_voxels_misleads(
    flips: tuple[int, ...], training: Keyed, voxels: CopySearch
) -> None:
    search = FeatureSearch(training, voxels, extract)
    copies = Keyed((0.5 * training.images[:5] - 0.2).flip([axis + 2 for axis in flips]))
    misled = voxels.search(images(5, 7), label="")
    found = search.search(copies, misled)
    assert found.indices.tolist() == list(range(5))
    assert found.distances == pytest.approx(np.zeros(5), abs=1e-3)
    assert found.views == [View(n, flips) for n in range(5)]


def test_an_image_is_its_own_neighbour_in_no_flip(training: Keyed, voxels: CopySearch) -> None:
    search = FeatureSearch(training, voxels, extract)
    found, source = search.strangers(images(9, 1))
    assert source == LEFT_OUT
    assert len(found.distances) == 40
    assert not np.any(found.indices == np.arange(40))
    assert found.distances.min() > 0.1


def test_strangers_are_at_most_so_many(training: Keyed, voxels: CopySearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 6)
    found, _ = FeatureSearch(training, voxels, extract).strangers(images(15, 1), seed=2)
    drawn = [view.image for view in found.views]
    assert len(set(drawn)) == 6
    assert drawn == sorted(drawn) != list(range(6))


def test_views_are_alike_in_brightness_and_contrast_and_reduced(training: Keyed, voxels: CopySearch) -> None:
    brighter = Keyed(0.4 * training.images + 0.3)
    views = [Views(of, [View(3, (1,), (2, -1, 0))], voxels)[0] for of in (training, brighter)]
    torch.testing.assert_close(*views, atol=1e-5, rtol=0)
    assert views[0].shape == (1, *view_size(voxels)) == (1, 10, 8, 1)
    assert views[0].mean().abs() < 0.02
    assert float(views[0].std()) == pytest.approx(feature_views.DEVIATION, abs=0.02)
    assert Views(training, [View(3)], voxels, full_size=True)[0].shape == training[3].shape
    assert torch.isfinite(Views(Keyed(torch.zeros_like(training.images[:1])), [View(0)], voxels)[0]).all()


def test_views_of_volumes_are_reduced_where_voxels_are_single_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    volumes = torch.randn(3, 1, 9, 60, 120, generator=generator)
    search = CopySearch(list(volumes), progress=False)
    assert (search.size, search.window) == ((9, 48, 48), [5, 44, 44])
    assert view_size(search) == (4, 28, 44)


def test_keys_tell_views_apart(training: Keyed, voxels: CopySearch, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [View(0), View(1), View(0, (0,)), View(0, (), (0, 1, 0))]
    keys = {*Views(training, views, voxels).keys, *Views(training, views, voxels, full_size=True).keys, *training.keys}
    monkeypatch.setattr(feature_views, "DEVIATION", 0.3)
    assert len(keys | set(Views(training, views, voxels).keys)) == 12 + len(training)


def test_the_figure_says_all_or_why_not(training: Keyed, voxels: CopySearch) -> None:
    def figure(samples: Keyed, known: Keyed | None = training, held_out: int = 12) -> tuple:
        extractor = create_extractor("random", 2)
        return Nearness(known, images(held_out, 1), lambda: voxels, extractor, seed=4).of("gan", samples)

    entry, nearest = figure(planted(training, 9))
    assert (entry["n"], entry["n_strangers"], entry["seed"], entry["extractor"]) == (9, 12, 4, "random")
    assert entry["high"] < 1
    distances = [pair["distance"] for pair in nearest]
    assert distances == sorted(distances)
    assert len(nearest) == 9
    assert all(pair["flips"] for pair in nearest)
    assert {len(pair["shift"]) for pair in nearest} == {3}
    assert "12 held-out real images (p = " in nearness_note("gan", entry)
    assert figure(images(3, 2), held_out=9)[0]["strangers"] == LEFT_OUT
    assert "no training images" in figure(images(3, 2), None)[0]["reason"]
    assert "at least 2 samples" in figure(images(1, 2))[0]["reason"]


def test_a_second_run_takes_features_of_views_from_the_cache(
    training: Keyed, voxels: CopySearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = create_extractor("random", 2)

    def figure(samples: Keyed) -> tuple:
        return Nearness(training, images(12, 1), lambda: voxels, extractor, tmp_path).of("gan", samples)

    first = figure(planted(training, 4))

    def refuse(*_: object) -> Tensor:
        raise AssertionError("extracted again")

    monkeypatch.setattr(extractor, "features", refuse)
    assert figure(planted(training, 4)) == first
    with pytest.raises(AssertionError, match="extracted again"):
        figure(images(4, 2))


def test_an_exported_network_gets_views_of_the_size_it_knows(
    training: Keyed, voxels: CopySearch, tmp_path: Path
) -> None:
    path = tmp_path / "network.pt"
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 28, 8))
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 32, 28)), str(path))
    entry, _ = Nearness(training, images(12, 1), lambda: voxels, create_extractor(path, 2)).of("gan", images(4, 2))
    assert entry["value"] > 0


def test_the_picture_shows_samples_turned_onto_their_matches(training: Keyed) -> None:
    sample = training[3].roll((2, -1), (1, 2)).flip([2])
    pair = {"sample": 0, "training_image": 3, "flips": [1], "shift": [2, 1, 0]}
    picture = feature_pairs([sample], training, [pair])
    above, below = np.split(picture, 2)
    np.testing.assert_array_equal(above, below)
    assert (feature_pairs([sample], training, [{**pair, "flips": []}])[: len(above)] != below).any()


def test_bad_features_are_named() -> None:
    with pytest.raises(UserError, match="needs at least 2"):
        nearest_training_image(normal(1, 0), normal(5, 1))
    with pytest.raises(UserError, match="at least 2 strangers"):
        feature_copies(np.ones(5), np.ones(1))
    with pytest.raises(UserError, match="must differ from the training images"):
        feature_copies(np.ones(5), np.zeros(5))
