"""The last act of stage 1: fix the statistics that whiten latents, from the training volumes."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

MOST_VOLUMES = 512


class LatentStatistics:
    """Called when stage 1 ends; the statistics become buffers of the autoencoder.

    Args:
        autoencoder: network with ``encode`` and ``set_latent_statistics``.
        dataset: training volumes.
        device: where to compute.
    """

    def __init__(self, autoencoder: nn.Module, dataset: Dataset, device: torch.device) -> None:
        self.autoencoder, self.dataset, self.device = autoencoder, dataset, device

    @torch.no_grad()
    def __call__(self) -> None:
        self.autoencoder.eval()
        count = min(MOST_VOLUMES, len(self.dataset))  # type: ignore[arg-type]
        # evenly spaced: lists are often sorted by class
        chosen = torch.linspace(0, len(self.dataset) - 1, count).round().int().tolist()  # type: ignore[arg-type]
        images = (torch.as_tensor(self.dataset[n]["image"])[None].to(self.device) for n in chosen)
        self.autoencoder.set_latent_statistics(self.autoencoder.encode(image) for image in images)  # type: ignore
        self.autoencoder.train()
