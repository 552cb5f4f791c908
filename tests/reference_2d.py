"""Medfusion's autoencoder and UNet written for images with PyTorch's own 2D layers: what depth 1 is compared with.

Nothing of the package is used. :func:`copy_weights` fills them with the weights of the package's networks, whose layers
are created in the same order.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters in their order, without the depth axis of 3D kernels."""
    for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
        weight = ours.detach()
        theirs.data.copy_(weight.squeeze(-1) if weight.dim() == 5 else weight)


class PreActivation(nn.Sequential):
    """GroupNorm, SiLU, convolution."""

    def __init__(self, before: int, after: int, groups: int, kernel: int, padding_mode: str) -> None:
        conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, padding_mode=padding_mode)
        super().__init__(nn.GroupNorm(groups, before, eps=1e-6), nn.SiLU(), conv)


class Residual(nn.Module):
    def __init__(self, before: int, after: int, groups: int, padding_mode: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            PreActivation(before, after, groups, 3, padding_mode), PreActivation(after, after, groups, 3, padding_mode)
        )
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class Autoencoder2d(nn.Module):
    """Encoder to mean and log-variance, and decoder with its head at half resolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        halvings: int,
        latent_channels: int,
        groups: int = 8,
        padding_mode: str = "replicate",
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(halvings + 1)]

        def conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, stride, padding=1, padding_mode=padding_mode)

        down: list[nn.Module] = [conv(in_channels, channels), Residual(channels, channels, groups, padding_mode)]
        for before, after in itertools.pairwise(widths):
            down += [conv(before, before, 2), Residual(before, after, groups, padding_mode)]
        down.append(PreActivation(widths[-1], 2 * latent_channels, groups, 1, padding_mode))
        self.encoder = nn.Sequential(*down)
        up: list[nn.Module] = [
            conv(latent_channels, widths[-1]),
            Residual(widths[-1], widths[-1], groups, padding_mode),
        ]
        for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            step = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv(before, after))
            up += [step, Residual(after, after, groups, padding_mode)]
        up.append(conv(channels, in_channels))
        self.decoder = nn.Sequential(*up)
        self.half_head = conv(2 * channels, in_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, image at half resolution and moments; the decoder gets the mean."""
        moments = self.encoder(x)
        half = self.decoder[:-3](moments.chunk(2, dim=1)[0])
        return self.decoder[-3:](half), self.half_head(half), moments


class EmbeddedResidual(nn.Module):
    def __init__(self, before: int, after: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, before)
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * after)
        self.groups = groups
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = F.group_norm(self.first(F.silu(self.norm(x))), self.groups)
        return self.skip(x) + self.second(F.silu(h * (1 + scale) + shift))


class UNet2d(nn.Module):
    """One block a level, summed skips, no attention, labels added to the timestep; planes that halve evenly."""

    def __init__(
        self, in_channels: int, width: int, multipliers: tuple[int, ...], num_classes: int, groups: int = 8
    ) -> None:
        super().__init__()
        embedding, channels = 4 * width, [width * m for m in multipliers]
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(num_classes + 1, embedding)
        self.first = nn.Conv2d(in_channels, width, 7, padding=3)
        pairs = list(zip([width, *channels[:-1]], channels, strict=True))
        self.down = nn.ModuleList(EmbeddedResidual(*pair, embedding, groups) for pair in pairs)
        self.smaller = nn.ModuleList(nn.Conv2d(c, c, 4, 2, 1) for c in channels[:-1])
        self.middle = EmbeddedResidual(channels[-1], channels[-1], embedding, groups)
        self.up = nn.ModuleList(EmbeddedResidual(after, before, embedding, groups) for before, after in pairs[::-1])
        self.larger = nn.ModuleList(nn.ConvTranspose2d(c, c, 4, 2, 1) for c in channels[-2::-1])
        self.last = EmbeddedResidual(width, width, embedding, groups)
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, in_channels, 1))

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(self.width // 2) * (-math.log(10000) / (self.width // 2)))
        angles = timesteps[:, None] * frequencies
        embedding = self.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(labels)
        skips = [h := self.first(x)]
        for level, block in enumerate(self.down):
            h = block(self.smaller[level - 1](h) if level else h, embedding)
            skips.append(h)
        h = self.middle(h, embedding)
        for level, block in enumerate(self.up):
            h = block((self.larger[level - 1](h) if level else h) + skips.pop(), embedding)
        return self.out(self.last(h + skips.pop(), embedding))
