"""What a feature extractor is: a frozen network from images to one vector each, with a protocol that identifies it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError


class FeatureExtractor(nn.Module, ABC):
    """Images ``(B, C, H, W, D)`` in [-1, 1] → features ``(B, F)``, float32. Never trains.

    Args:
        name: short, for reports.
        spatial_dims: 2 for images (depth 1), 3 for volumes.
        channels: of the images.
        protocol: everything that the features depend on beyond the images: weights by hash, preprocessing; JSON-able.

    Raises:
        UserError: ``spatial_dims`` is neither 2 nor 3, or no channel.
    """

    def __init__(self, name: str, spatial_dims: int, channels: int, protocol: dict[str, Any]) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise UserError("spatial_dims must be 2 for images or 3 for volumes", spatial_dims)
        if channels < 1:
            raise UserError("images must have at least one channel", channels)
        self.name, self.spatial_dims, self.channels = name, spatial_dims, channels
        self.protocol: dict[str, Any] = {
            "extractor": name,
            "spatial_dims": spatial_dims,
            "channels": channels,
            **protocol,
        }

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` in [-1, 1] → ``(B, F)``."""

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, F)`` of images ``(B, C, H, W, D)`` in [-1, 1].

        Raises:
            UserError: another number of channels, flat images for an extractor of volumes or the reverse.
        """
        self._check(images)
        return self.features(images.float()).float()

    def train(self, mode: bool = True) -> FeatureExtractor:
        """A fixed network: it stays in evaluation mode. What is inside is not asked: exported programs refuse it."""
        return self

    def _check(self, images: Tensor) -> None:
        if images.ndim != 5 or images.shape[1] != self.channels:
            raise UserError(
                f"the extractor {self.name} takes images (B, {self.channels}, H, W, D)", tuple(images.shape)
            )
        if (images.shape[-1] == 1) != (self.spatial_dims == 2):
            kind = "flat images, of depth 1" if self.spatial_dims == 2 else "volumes, of a depth above 1"
            raise UserError(f"the extractor {self.name} was made for {kind}", tuple(images.shape))
