from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import feature_copies as module
from medical_diffusion.evaluation.feature_copies import HELD_OUT, LEFT_OUT, feature_copies, nearest_training_image
from medical_diffusion.evaluation.report.nearness import feature_copy_figure, nearness_note


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
    distances, indices = nearest_training_image(queries, training, others)
    np.testing.assert_allclose(distances, plain.min(1), rtol=1e-9)
    assert indices.tolist() == plain.argmin(1).tolist()


def test_new_samples_are_as_far_as_strangers_and_copies_are_not() -> None:
    training, strangers = normal(60, 0), normal(50, 1)
    new = feature_copies(normal(50, 2), training, strangers)
    assert new.ratio.low < 1 < new.ratio.high
    assert new.p_value > 0.05
    assert new.source == HELD_OUT
    noise = 0.05 * np.random.default_rng(3).normal(size=(20, 12)).astype(np.float32)
    copied = feature_copies(np.concatenate([normal(30, 2), training[:20] + noise]), training, strangers)
    assert copied.ratio.high < 1
    assert copied.p_value < 0.01
    assert copied.nearer >= 20
    assert copied.indices[30:].tolist() == list(range(20))
    far = feature_copies(normal(50, 2) + 2, training, strangers)
    assert far.ratio.low > 1
    assert far.nearer == 0


def test_training_images_stand_in_for_strangers() -> None:
    training = normal(80, 0)
    alone = feature_copies(normal(60, 2), training)
    assert alone.source == LEFT_OUT
    assert alone.strangers == 80
    assert alone.ratio.value == pytest.approx(1, abs=0.1)


def test_the_figure_says_all_or_why_not() -> None:
    training, held_out, samples = normal(30, 0), normal(12, 1), normal(9, 2)
    entry, nearest = feature_copy_figure(samples, training, held_out, seed=4)
    assert (entry["n"], entry["n_strangers"], entry["seed"]) == (9, 12, 4)
    distances = [pair["distance"] for pair in nearest]
    assert distances == sorted(distances)
    assert len(nearest) == 9
    assert "12 held-out real images (p = " in nearness_note("gan", entry)
    assert feature_copy_figure(samples, training, held_out[:9], seed=4)[0]["strangers"] == LEFT_OUT
    assert "no training images" in feature_copy_figure(samples, None, held_out, seed=4)[0]["reason"]
    assert "at least 2" in feature_copy_figure(samples[:1], training, held_out, seed=4)[0]["reason"]


def test_bad_features_are_named() -> None:
    with pytest.raises(UserError, match="needs at least 2"):
        nearest_training_image(normal(1, 0), normal(5, 1))
    with pytest.raises(UserError, match="must differ from the training images"):
        feature_copies(normal(5, 0), np.ones((5, 12), np.float32))
