"""Batches as a function of (seed, step): the order of the data is known at any step, so resuming needs no stored state.

Epoch k of N items is a permutation drawn from (seed, k); step s of rank r in a world of W processes takes its
``batch_size`` consecutive places. Batches run on over the end of an epoch, so none is short, even for two volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, Sampler

from medical_diffusion.errors import UserError


class StepSampler(Sampler[list[Any]]):
    """Endless batches of indices, starting at ``first_step``.

    Args:
        length: number of items N.
        batch_size: items per batch and process.
        seed: of the order.
        rank, world_size: this process among all.
        positions: give (index, place in the run) instead of indices, for data that are drawn anew at every place.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        positions: bool = False,
    ) -> None:
        if length < 1:
            raise UserError("training needs at least one item", length)
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.positions = positions
        self.first_step = 0

    def batch(self, step: int) -> list[Any]:
        """Indices of step ``step`` (from 0)."""
        start = (step * self.world_size + self.rank) * self.batch_size
        places = range(start, start + self.batch_size)
        return [(self._item(place), place) if self.positions else self._item(place) for place in places]

    def __iter__(self) -> Iterator[list[Any]]:
        step = self.first_step
        while True:
            yield self.batch(step)
            step += 1

    def _item(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % (1 << 62))
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator).tolist()
        return self._order[place]


class StepLoader(DataLoader):
    """MONAI data loader over :class:`StepSampler`; set :attr:`first_step` before iterating to resume.

    Args:
        dataset: map-style; each item a dictionary with the key ``image``.
        batch_size, seed, rank, world_size: see :class:`StepSampler`.
        num_workers: worker processes; 0 loads in the training process.
        positions: see :class:`StepSampler`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        positions: bool = False,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if world_size is None:
            world_size = torch.distributed.get_world_size() if distributed else 1
        self.steps = StepSampler(len(dataset), batch_size, seed, rank, world_size, positions)  # type: ignore[arg-type]
        super().__init__(dataset, batch_sampler=self.steps, num_workers=num_workers)

    def start_at(self, step: int) -> None:
        """Let the next iteration begin at ``step``."""
        self.steps.first_step = step
