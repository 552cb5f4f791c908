from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.neighbours import _block_means, memorisation, nearest_neighbours


def smooth_volumes(count: int, *size: int, seed: int) -> Tensor:
    noise = torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(seed))
    for axis in (2, 3, 4):
        for _ in range(3):
            noise = (noise + noise.roll(1, axis)) / 2 if size[axis - 2] > 1 else noise
    return noise


@pytest.mark.parametrize("metric", ["l2", "correlation"])
@pytest.mark.parametrize("size", [(20, 18, 7), (24, 24, 1), (5, 6, 4)])
def test_equals_the_full_comparison(metric: str, size: tuple[int, ...]) -> None:
    queries, references = smooth_volumes(5, *size, seed=0), smooth_volumes(40, *size, seed=1)
    found = nearest_neighbours(queries, references, k=1, metric=metric, chunk_size=7)
    a, b = queries.flatten(1).double(), references.flatten(1).double()
    if metric == "correlation":
        a, b = ((t - t.mean(1, keepdim=True)) / t.std(1, keepdim=True, correction=0) for t in (a, b))
    full = torch.cdist(a, b) / a.shape[1] ** 0.5
    torch.testing.assert_close(found.distances[:, 0].double(), full.min(1).values, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.indices[:, 0], full.argmin(1))


@pytest.mark.parametrize("size", [(33, 17, 5), (40, 40, 1), (16, 8, 3)])
def test_block_means_bound_the_distance_from_below(size: tuple[int, ...]) -> None:
    a, b = torch.randn(4, 2, *size), torch.randn(6, 2, *size)
    bound = torch.cdist(_block_means(a, "l2", 3), _block_means(b, "l2", 3))
    full = torch.cdist(a.flatten(1), b.flatten(1)) / a[0].numel() ** 0.5
    assert (bound <= full + 1e-5).all()


def test_neighbours_are_sorted_and_read_from_any_sequence() -> None:
    volumes = smooth_volumes(12, 10, 9, 8, seed=3)
    found = nearest_neighbours([volumes[4], volumes[7]], list(volumes), k=3)
    assert found.indices[:, 0].tolist() == [4, 7]
    assert found.distances[:, 0].tolist() == [0, 0]
    assert (found.distances.diff(dim=1) >= 0).all()
    assert nearest_neighbours(volumes[:2], volumes[:3], k=10).indices.shape == (2, 3)


@pytest.mark.parametrize("metric", ["l2", "correlation"])
def test_copies_are_told_from_new_volumes(metric: str) -> None:
    training = smooth_volumes(30, 16, 16, 8, seed=0)
    held_out = smooth_volumes(8, 16, 16, 8, seed=1)
    copy = training[11] + 0.02 * torch.randn_like(training[11])
    samples = torch.cat([smooth_volumes(2, 16, 16, 8, seed=2), copy[None]])
    report = memorisation(samples, training, held_out, metric=metric)
    assert report.copies.tolist() == [False, False, True]
    assert report.samples.indices[2, 0] == 11
    assert report.held_out.ratio.min() > 0.8
    assert (report.samples.distances[2, 0] < report.held_out.distances[:, 0]).all()


def test_correlation_forgives_brightness_and_contrast() -> None:
    training = smooth_volumes(20, 12, 12, 6, seed=0)
    report = memorisation(0.5 * training[[3]] + 2, training, training[:2], metric="correlation")
    assert report.copies.tolist() == [True]
    assert report.samples.distances[0, 0] < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: nearest_neighbours(x, x, metric="correlatio"),
            "metric must be a known one.*Did you mean correlation",
        ),
        (lambda x: nearest_neighbours(x, x, k=0), "at least one neighbour must be asked for.*0"),
        (lambda x: nearest_neighbours(x, x[:0]), "at least one query and one reference"),
        (lambda x: nearest_neighbours(x, x[..., :2]), "must be volumes of the same shape"),
        (lambda x: memorisation(x, x[:1], x), "comparing at least 2 training neighbours"),
    ],
)
def test_bad_calls_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(torch.zeros(3, 1, 4, 4, 4))
