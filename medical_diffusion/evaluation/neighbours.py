"""Nearest training neighbours of synthetic volumes: novel anatomy, or copies?

Distances are root mean squares over voxels; ``correlation`` standardises each volume first and so forgives another
brightness or contrast (``d = sqrt(2 (1 - r))``, r being Pearson's correlation).

The search has two stages. All volumes are reduced to block means; the distance of these, weighted by the sizes of the
blocks, is never larger than that of the volumes (Jensen's inequality). The nearest ones by this bound are then compared
voxel by voxel. A copy has a bound near zero, so the first stage cannot miss it. Only a chunk of volumes is held at a
time.

A distance alone says little: smooth volumes are nearer to everything. So each sample's distance to its nearest
neighbour is divided by its mean distance to the following ones, as in Carlini et al. 2023 (Section 4.2), and held-out
real volumes, which cannot be copies, are treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medical_diffusion.errors import UserError, did_you_mean

METRICS = ("l2", "correlation")
COARSE_SIZE = 16
COPY_RATIO = 0.5
"""A nearest neighbour at less than half the distance of the next ones is a copy (Carlini et al. 2023, alpha = 0.5)."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest references of each query, nearest first.

    Attributes:
        indices: positions in the references, ``(Q, k)``.
        distances: root mean square over voxels, ``(Q, k)``, in units of intensity (or of standard deviations).
    """

    indices: Tensor
    distances: Tensor

    @property
    def ratio(self) -> Tensor:
        """Distance of the nearest by the mean distance of the others, ``(Q,)``; near 0 for a copy, NaN where k = 1."""
        return self.distances[:, 0] / self.distances[:, 1:].mean(1)


@dataclass(frozen=True)
class MemorisationReport:
    """Neighbours of samples and of held-out volumes among the training volumes.

    Attributes:
        samples: neighbours of the synthetic volumes.
        held_out: neighbours of real volumes that were not trained on: what to expect without copying.
    """

    samples: Neighbours
    held_out: Neighbours

    @property
    def copies(self) -> Tensor:
        """Which samples are copies, ``(Q,)``, boolean: nearest neighbour at less than half the distance of the next."""
        return self.samples.ratio < COPY_RATIO


def nearest_neighbours(
    queries: Sequence[Tensor] | Tensor,
    references: Sequence[Tensor] | Tensor,
    k: int = 5,
    metric: str = "l2",
    chunk_size: int = 16,
) -> Neighbours:
    """The k nearest references of each query.

    Args:
        queries: volumes ``(C, H, W, D)`` by index, a tensor ``(Q, C, H, W, D)`` or a dataset.
        references: volumes of the same shape; read once in order and a few again.
        k: neighbours wanted; fewer where there are fewer references.
        metric: ``l2`` or ``correlation``.
        chunk_size: volumes held at a time.

    Raises:
        UserError: no volumes, different shapes, an unknown metric, k below 1.
    """
    if metric not in METRICS:
        raise UserError("the metric must be a known one", metric, did_you_mean(metric, METRICS))
    if k < 1:
        raise UserError("at least one neighbour must be asked for", k)
    if len(queries) == 0 or len(references) == 0:
        raise UserError("neighbours need at least one query and one reference", (len(queries), len(references)))
    shapes = tuple(queries[0].shape), tuple(references[0].shape)
    if shapes[0] != shapes[1]:
        raise UserError("queries and references must be volumes of the same shape", shapes)

    k = min(k, len(references))
    # some slack, since the order by block means is not quite that by voxels
    candidates = min(4 * k + 8, len(references))
    coarse = torch.cdist(_block_means(queries, metric, chunk_size), _block_means(references, metric, chunk_size))
    nearest = coarse.topk(candidates, dim=1, largest=False).indices

    distances = torch.empty(len(queries), candidates)
    for start in range(0, len(queries), chunk_size):
        rows = range(start, min(start + chunk_size, len(queries)))
        chunk = {row: _prepared(queries[row], metric) for row in rows}
        # each reference is read once for all queries of the chunk that want it
        for index in nearest[rows.start : rows.stop].unique().tolist():
            reference = _prepared(references[index], metric)
            for row in rows:
                hit = nearest[row] == index
                if hit.any():
                    distances[row, hit] = (chunk[row] - reference).square().mean().sqrt().cpu()
    distances, order = distances.topk(k, dim=1, largest=False)
    return Neighbours(nearest.gather(1, order), distances)


def memorisation(
    samples: Sequence[Tensor] | Tensor,
    training: Sequence[Tensor] | Tensor,
    held_out: Sequence[Tensor] | Tensor,
    k: int = 5,
    metric: str = "l2",
) -> MemorisationReport:
    """Compares samples and held-out volumes with the training volumes.

    Args:
        samples: synthetic volumes, see :func:`nearest_neighbours`.
        training: the volumes that the models were trained on, at least 2.
        held_out: real volumes that they were not trained on.
        k: neighbours of each, at least 2.
        metric: ``l2`` or ``correlation``.

    Raises:
        UserError: as for :func:`nearest_neighbours`; fewer than 2 training volumes or neighbours.
    """
    if k < 2 or len(training) < 2:
        raise UserError("copies are told by comparing at least 2 training neighbours", (k, len(training)))
    return MemorisationReport(
        nearest_neighbours(samples, training, k, metric), nearest_neighbours(held_out, training, k, metric)
    )


def _prepared(volume: Tensor, metric: str) -> Tensor:
    """``(C, H, W, D)`` in float32, standardised for correlation."""
    volume = volume.float()
    if metric == "correlation":
        volume = volume - volume.mean()
        # a constant volume correlates with nothing
        volume = volume / volume.square().mean().sqrt().clamp(min=torch.finfo(volume.dtype).tiny)
    return volume


def _block_means(volumes: Sequence[Tensor] | Tensor, metric: str, chunk_size: int) -> Tensor:
    """Vectors ``(N, K)``, float64, whose Euclidean distance is a lower bound of the root mean square distance."""
    rows = []
    for start in range(0, len(volumes), chunk_size):
        indices = range(start, min(start + chunk_size, len(volumes)))
        chunk = torch.stack([_prepared(volumes[i], metric) for i in indices])
        block = [-(-n // COARSE_SIZE) for n in chunk.shape[2:]]
        means = functional.avg_pool3d(chunk, block, ceil_mode=True, count_include_pad=False)
        counts = functional.avg_pool3d(torch.ones_like(chunk[:1]), block, ceil_mode=True, divisor_override=1)
        weights = (counts / chunk[0].numel()).sqrt()
        rows.append((means * weights).flatten(1).double().cpu())
    return torch.cat(rows)
