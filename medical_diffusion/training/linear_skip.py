"""The first act of stage 2: measure the spectrum that a UNet's linear skip filters by."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.data import Dataset

from medical_diffusion.networks.wiener import WienerSkip

MOST_LATENTS = 512


class LinearSkipFit:
    """Handler that fits a :class:`WienerSkip` to clean latents before the first step; a resumed run keeps its own.

    Args:
        linear_skip: of the network that is trained.
        dataset: training latents, items with ``image``; at most 512, evenly spaced, are read.
    """

    def __init__(self, linear_skip: WienerSkip, dataset: Dataset) -> None:
        self.linear_skip, self.dataset = linear_skip, dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._fit)

    def _fit(self, engine: Engine) -> None:
        if engine.state.iteration == 0:
            self.linear_skip.fit(self._latents())

    def _latents(self) -> Iterator[Tensor]:
        length = len(self.dataset)  # type: ignore[arg-type]
        # evenly spaced: lists are often sorted by class
        for n in torch.linspace(0, length - 1, min(MOST_LATENTS, length)).round().int().tolist():
            yield torch.as_tensor(self.dataset[n]["image"])[None]
