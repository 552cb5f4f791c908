"""The diffusion UNet of Medical Diffusion (Khader et al., 2023, "Architecture") and, by its options, of Medfusion.

A UNet over the slice plane: convolutions and resampling never act along depth, so that any number of slices can be
used. What the slices know of each other comes from depth attention alone, at every level. Volumes of depth 1 are
images: the same network without depth attention. Slices are folded into the batch once, on entry.

Medfusion's UNet for images (Müller-Franzes et al., 2023) is ``UNet(8, width=256, channel_multipliers=(1, 1, 2, 4),
blocks_per_level=1, middle=False, skip="add", spatial_attention="none", depth_attention=False, num_classes=2)``. It has
55.1 million parameters where the paper counts 49.9: the difference is this UNet's 4 x 4 kernels for resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.networks.attention import DepthPositions, RelativePositionBias, rotary_rotation
from medical_diffusion.networks.unet_blocks import (
    DepthEmbedding,
    Downsample,
    ResidualBlock,
    TimestepEmbedding,
    UNetLevel,
    Upsample,
)

SpatialOption = Literal["auto", "full", "linear", "none"]
SPATIAL_KINDS = ("auto", "full", "linear", "none")
SKIPS = ("concatenate", "add")


class UNet(nn.Module):
    """Predicts noise, data or velocity from a noisy latent and its timestep; 0 or ``linear_skip`` before training.

    Parameters at ``width`` 16, 32, 64: 3.0, 10.0, 35.7 million.

    Args:
        in_channels: channels of the latent.
        out_channels: channels of the prediction; those of the latent if None.
        width: channels of the first level (published: 64 for planes of 64 x 64, 32 for 32 x 32).
        channel_multipliers: channels of each level over ``width``; the plane is halved between levels.
        num_heads, head_channels: attention heads and the (even) number of channels of each.
        norm_groups: groups of each normalisation.
        spatial_attention: "full"; "linear" at every level with full attention in the middle, as published; or "auto",
            full where a plane has at most 32 x 32 positions; "none" leaves it out.
        depth_attention: False leaves it out, for networks that see nothing but depth 1.
        depth_embedding: tell each slice where it lies between the first and the last. Depth attention alone knows
            distances between slices only, as published, so that nothing but the noise tells a network where a volume
            ends; needs ``depth_attention``.
        num_classes: classes for conditional generation, or None. One more embedding, index ``num_classes``, means
            "no class".
        use_checkpoint: recompute each level in the backward pass: less memory, about a third more time.
        blocks_per_level: residual blocks of each level.
        middle: a level between the way down and the way up.
        skip: how a map on the way up meets that of its size on the way down: "concatenate", or "add" (Medfusion).
        linear_skip: called as ``linear_skip(x, timesteps)`` and added to the prediction, for example
            :class:`~medical_diffusion.networks.WienerSkip`; None adds nothing.

    Raises:
        UserError: ``width`` is not a multiple of ``norm_groups``, or another argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int | None = None,
        width: int = 32,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8),
        num_heads: int = 8,
        head_channels: int = 32,
        norm_groups: int = 8,
        spatial_attention: SpatialOption = "auto",
        depth_attention: bool = True,
        depth_embedding: bool = True,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        blocks_per_level: int = 2,
        middle: bool = True,
        skip: Literal["concatenate", "add"] = "concatenate",
        linear_skip: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if width % norm_groups or width % 2:
            raise UserError(
                f"width must be even and a multiple of norm_groups ({norm_groups})",
                width,
                f"Use for example {max(norm_groups, width - width % norm_groups)}, or set norm_groups",
            )
        if not channel_multipliers or any(m < 1 for m in channel_multipliers):
            raise UserError("channel_multipliers must be positive whole numbers, one a level", channel_multipliers)
        if head_channels % 2:
            raise UserError("head_channels must be even, since rotary embedding turns pairs", head_channels)
        if spatial_attention not in SPATIAL_KINDS:
            raise UserError(
                "spatial_attention must be auto, full, linear or none",
                spatial_attention,
                did_you_mean(str(spatial_attention), SPATIAL_KINDS),
            )
        if skip not in SKIPS:
            raise UserError("skip must be concatenate or add", skip, did_you_mean(str(skip), SKIPS))
        if isinstance(blocks_per_level, bool) or int(blocks_per_level) != blocks_per_level or blocks_per_level < 1:
            raise UserError("blocks_per_level must be a positive whole number", blocks_per_level)
        if num_classes is not None and num_classes < 1:
            raise UserError("num_classes must be at least 1", num_classes, "Leave it out for a network without classes")

        self.in_channels, self.num_classes, self.use_checkpoint = in_channels, num_classes, use_checkpoint
        self.head_channels, self.skip = head_channels, skip
        embedding = 4 * width
        channels = [width * multiplier for multiplier in channel_multipliers]

        def level(before: int, after: int, kind: SpatialOption = spatial_attention) -> UNetLevel:
            return UNetLevel(
                before,
                after,
                embedding,
                norm_groups=norm_groups,
                num_heads=num_heads,
                head_channels=head_channels,
                spatial_attention=None if kind == "none" else kind,
                depth_attention=depth_attention,
                num_blocks=blocks_per_level,
            )

        self.time_embedding = TimestepEmbedding(width, embedding)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, embedding)
        self.depth_bias = RelativePositionBias(num_heads) if depth_attention else None
        self.depth_embedding = DepthEmbedding(embedding) if depth_attention and depth_embedding else None
        self.first = nn.Conv2d(in_channels, width, 7, padding=3)
        down = list(zip([width, *channels[:-1]], channels, strict=True))
        self.down = nn.ModuleList(level(before, after) for before, after in down)
        self.downsample = nn.ModuleList(Downsample(after) for after in channels[:-1])
        kind: SpatialOption = "full" if spatial_attention == "linear" else spatial_attention
        self.middle = level(channels[-1], channels[-1], kind) if middle else None
        met = 1 if skip == "add" else 2
        self.up = nn.ModuleList(level(met * after, before) for before, after in reversed(down))
        self.upsample = nn.ModuleList(Upsample(before) for before in reversed(channels[:-1]))
        self.last = ResidualBlock(met * width, width, embedding, norm_groups)
        self.norm = nn.GroupNorm(norm_groups, width)
        self.out = nn.Conv2d(width, out_channels or in_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.linear_skip = linear_skip

    def forward(self, x: Tensor, timesteps: Tensor | float, class_labels: Tensor | int | None = None) -> Tensor:
        """Predict from a noisy latent.

        Args:
            x: (B, in_channels, h, w, d), any h, w and d.
            timesteps: (B,) or one number for all.
            class_labels: (B,) or one number for all, in [0, num_classes]; None means "no class".

        Returns:
            (B, out_channels, h, w, d).

        Raises:
            UserError: x, timesteps or class_labels do not fit this network.
        """
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise UserError(f"x must have shape (B, {self.in_channels}, h, w, d)", tuple(x.shape))
        batch, depth = x.shape[0], x.shape[-1]
        embedding = self._embed(batch, x.device, timesteps, class_labels)
        if self.depth_embedding is not None and depth > 1:
            embedding = rearrange(self.depth_embedding(depth)[:, None] + embedding, "d b e -> (d b) e")
        embedding = F.silu(embedding)
        positions = self._depth_positions(depth)

        h = rearrange(x, "b c h w d -> (d b) c h w").contiguous(memory_format=torch.channels_last)
        skips = [h := self.first(h)]
        for i, level in enumerate(self.down):
            h = self._run(level, self.downsample[i - 1](h) if i else h, embedding, positions)
            skips.append(h)
        if self.middle is not None:
            h = self._run(self.middle, h, embedding, positions)
        for i, level in enumerate(self.up):
            skip = skips.pop()
            if i:
                h = self.upsample[i - 1](h, skip.shape[2:])
            h = self._run(level, self._meet(h, skip), embedding, positions)
        h = self.last(self._meet(h, skips.pop()), embedding)
        h = self.out(F.silu(self.norm(h)))
        y = rearrange(h, "(d b) c h w -> b c h w d", b=batch).contiguous(memory_format=torch.channels_last_3d)
        if self.linear_skip is None:
            return y
        return y + self.linear_skip(x, _one_each("timesteps", timesteps, batch, x.device))

    def _meet(self, h: Tensor, skip: Tensor) -> Tensor:
        return h + skip if self.skip == "add" else torch.cat([h, skip], dim=1)

    def _run(self, level: nn.Module, h: Tensor, embedding: Tensor, positions: DepthPositions | None) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(level, h, embedding, positions, use_reentrant=False)
        return level(h, embedding, positions)

    def _depth_positions(self, depth: int) -> DepthPositions | None:
        if self.depth_bias is None or depth == 1:
            return None
        device = self.depth_bias.bias.weight.device
        return DepthPositions(rotary_rotation(depth, self.head_channels, device), self.depth_bias(depth))

    def _embed(
        self, batch: int, device: torch.device, timesteps: Tensor | float, class_labels: Tensor | int | None
    ) -> Tensor:
        embedding = self.time_embedding(_one_each("timesteps", timesteps, batch, device))
        if self.class_embedding is None or self.num_classes is None:
            if class_labels is not None:
                raise UserError(
                    "class_labels need a network with classes", class_labels, "Build the UNet with num_classes"
                )
            return embedding
        labels = _one_each("class_labels", self.num_classes if class_labels is None else class_labels, batch, device)
        # on a GPU the check would wait for the device at every step; there, the embedding itself stops
        if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) <= self.num_classes:
            raise UserError(f"class_labels must lie in [0, {self.num_classes}]", labels.tolist())
        return embedding + self.class_embedding(labels.long())


def _one_each(name: str, value: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """One number for each sample, on ``device``."""
    values = torch.as_tensor(value, device=device).reshape(-1)
    if len(values) not in (1, batch):
        raise UserError(f"{name} must be one number, or one for each of the {batch} samples", list(values.shape))
    return values.expand(batch)
