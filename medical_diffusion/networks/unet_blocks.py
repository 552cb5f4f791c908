"""Building blocks of the diffusion UNet: timestep embedding, residual block, resampling, and one resolution level.

All act on slices folded into the batch, ``((d b), c, h, w)``, depth outermost. The size of a plane is halved upwards,
``ceil(n / 2)``, so that odd planes and axes of size 1 need no special case: an axis of size 1 stays what it is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medical_diffusion.networks.attention import DepthAttention, DepthPositions, SpatialAttention, SpatialKind
from medical_diffusion.networks.small_plane_conv import prefers_small_plane, small_plane_conv


class TimestepEmbedding(nn.Sequential):
    """Sinusoids of the timestep, frequencies 1 to 1/10000 (Ho et al., "DDPM", 2020, appendix B), then a small MLP."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(nn.Linear(width, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.width = width

    def forward(self, timesteps: Tensor) -> Tensor:
        """Map timesteps (b,), whole or not, to (b, channels)."""
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=timesteps.device))
        angles = timesteps[:, None].float() * frequencies
        return super().forward(torch.cat([angles.cos(), angles.sin()], dim=1))


class DepthEmbedding(nn.Linear):
    """Learned sum of sinusoids of where a slice lies between the first (-1) and the last (1); 0 before training.

    Positions are relative to the length, so that any number of slices can be used.
    """

    FREQUENCIES = 4  # in octaves from a quarter of a period over the whole depth

    def __init__(self, channels: int) -> None:
        super().__init__(2 * self.FREQUENCIES, channels, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, depth: int) -> Tensor:  # type: ignore[override]
        """Embeddings (depth, channels); depth is at least 2."""
        position = torch.linspace(-1, 1, depth, device=self.weight.device)
        octaves = 2.0 ** torch.arange(self.FREQUENCIES, device=self.weight.device)
        angles = position[:, None] * (math.pi / 4 * octaves)
        return super().forward(torch.cat([angles.cos(), angles.sin()], dim=1))


class SliceConv(nn.Conv2d):
    """3 x 3 convolution inside slices, "same" size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, h, w)."""
        if prefers_small_plane(x, self.out_channels):
            assert self.bias is not None
            return small_plane_conv(x, self.weight, self.bias)
        return super().forward(x)


class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift))``, scale and shift from the embedding.

    Adaptive group normalisation of Dhariwal and Nichol ("Diffusion Models Beat GANs", 2021, equation 6). Statistics
    belong to one slice, so that nothing but depth attention connects slices. A new block passes ``skip(x)``.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups, in_channels)
        self.conv_in = SliceConv(in_channels, out_channels)
        self.scale_shift = nn.Linear(embedding_channels, 2 * out_channels)
        self.norm_out = nn.GroupNorm(norm_groups, out_channels, affine=False)
        self.conv_out = SliceConv(out_channels, out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ((d b), in_channels, h, w) and an activated embedding to ((d b), out_channels, h, w).

        The embedding is (b, e), or ((d b), e) where slices have embeddings of their own.
        """
        h = self.conv_in(F.silu(self.norm_in(x)))
        per_slice = self.scale_shift(embedding)
        if len(x) > len(embedding):
            per_slice = per_slice.repeat(len(x) // len(embedding), 1)
        scale, shift = per_slice[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        return self.skip(x) + self.conv_out(h)


class Downsample(nn.Conv2d):
    """4 x 4 convolution, stride 2, inside slices: ``n`` to ``ceil(n / 2)`` along each axis of the plane."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c, ceil(h / 2), ceil(w / 2))."""
        height, width = x.shape[2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        return super().forward(x)


class Upsample(nn.ConvTranspose2d):
    """4 x 4 transposed convolution, stride 2, inside slices; cropped to the plane that was halved."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, plane: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Map (n, c, ceil(h / 2), ceil(w / 2)) to (n, c, h, w), where ``plane`` is (h, w)."""
        return super().forward(x)[:, :, : plane[0], : plane[1]]


class UNetLevel(nn.Module):
    """Residual blocks, spatial attention, depth attention: one resolution on the way down, in the middle or up."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        norm_groups: int,
        num_heads: int,
        head_channels: int,
        spatial_attention: SpatialKind | None,
        depth_attention: bool,
        num_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if index == 0 else out_channels, out_channels, embedding_channels, norm_groups)
            for index in range(num_blocks)
        )
        self.spatial_attention = (
            None
            if spatial_attention is None
            else SpatialAttention(out_channels, num_heads, head_channels, spatial_attention)
        )
        self.depth_attention = DepthAttention(out_channels, num_heads, head_channels) if depth_attention else None

    def forward(self, x: Tensor, embedding: Tensor, positions: DepthPositions | None) -> Tensor:
        """Map ((d b), in_channels, h, w) to ((d b), out_channels, h, w); no depth attention without ``positions``."""
        for block in self.blocks:
            x = block(x, embedding)
        if self.spatial_attention is not None:
            x = self.spatial_attention(x)
        if self.depth_attention is not None and positions is not None:
            x = self.depth_attention(x, positions)
        return x
