"""What stands between encoder and decoder: the interface that vector quantiser and Gaussian bottleneck share.

The encoder gives a bottleneck ``moments`` numbers for each latent element. The bottleneck makes of them what the
decoder receives in training (``forward``) and what diffusion learns (``encode``: never a random draw), and it brings a
latent that diffusion has made back to what the decoder knows (``to_decoder``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class BottleneckOutput(NamedTuple):
    """What a bottleneck returns.

    Attributes:
        latents: (B, C, h, w, d), what the decoder receives; its gradient reaches the encoder.
        loss: scalar, the bottleneck's own term of the training loss, weight included.
        statistics: detached scalars by name that a log should show.
        indices: (B, h, w, d) int64, the code of each position; None without a codebook.
    """

    latents: Tensor
    loss: Tensor
    statistics: dict[str, Tensor]
    indices: Tensor | None = None


class Bottleneck(nn.Module, ABC):
    """Bottleneck of an autoencoder: (B, moments x C, h, w, d) → :class:`BottleneckOutput` with latents (B, C, h, w, d).

    Attributes:
        moments: how many numbers the encoder gives for each latent element.
    """

    moments: int = 1

    @abstractmethod
    def forward(self, h: Tensor) -> BottleneckOutput:
        """Latents for the decoder and the bottleneck's loss, from the encoder's output."""

    @abstractmethod
    def encode(self, h: Tensor) -> Tensor:
        """What diffusion learns: (B, moments x C, h, w, d) → (B, C, h, w, d), the same at every call."""

    @abstractmethod
    def to_decoder(self, z: Tensor) -> Tensor:
        """What the decoder receives for a latent of :meth:`encode`'s kind: (B, C, h, w, d) → the same shape."""
