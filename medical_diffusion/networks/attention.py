"""Spatial attention inside each slice and depth attention through the slices.

Feature maps come with the slices folded into the batch, depth outermost: ``((d b), c, h, w)`` in ``channels_last``
memory. A row of channels is then one token, so that the tokens of a slice, ``(d b) (h w) c``, and those of a plane
position, ``d (b h w) c``, are both views of the same memory and no attention has to copy its input.

*Full* attention is ``softmax(Q K^T / sqrt(e)) V``. *Linear* attention (Shen et al., "Efficient Attention", WACV 2021,
equation 3) is ``softmax_e(Q) (softmax_positions(K)^T V)``: its cost grows with the number of positions and not with its
square. *Depth* attention is full attention over the slices at one plane position, with rotary embedding (Su et al.,
"RoFormer", 2021, equation 34) and a learned bias per distance (Raffel et al., "T5", JMLR 2020, section 2.1). Both
depend on relative positions only, so that any number of slices can be used.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SpatialKind = Literal["auto", "full", "linear"]

# ``auto`` attends fully up to this many positions of a plane
FULL_ATTENTION_POSITIONS = 32**2
# CUDA attention kernels take the batch as a grid axis of 65535 blocks at most
MAX_KERNEL_BATCH = 32768


class DepthPositions(NamedTuple):
    """What depth attention knows of the slices; computed once for all layers of a network."""

    rotation: Tensor  # (d, e / 2) complex: rotary embedding
    bias: Tensor  # (heads, d, d): added to the logits, query first


def rotary_rotation(length: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Unit complex numbers (length, channels / 2): position ``p`` turns pair ``i`` by ``p 10000^(-2i / channels)``."""
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channels of ``x`` (..., d, e), as real and imaginary part, by ``rotation`` (d, e / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class RelativePositionBias(nn.Module):
    """Learned attention bias for each head and each bucket of signed distance between slices.

    Half of the buckets of each sign hold one distance each, the others widen logarithmically up to ``max_distance``;
    larger distances share the last bucket (T5, section 2.1).
    """

    def __init__(self, num_heads: int, num_buckets: int = 32, max_distance: int = 64) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.bias = nn.Embedding(num_buckets, num_heads)
        nn.init.zeros_(self.bias.weight)

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of each signed distance (key position minus query position)."""
        per_sign = self.num_buckets // 2
        exact = per_sign // 2
        size = distance.abs()
        growth = torch.log(size.clamp(min=exact) / exact) / math.log(self.max_distance / exact)
        widening = (exact + (growth * (per_sign - exact)).long()).clamp(max=per_sign - 1)
        return torch.where(size < exact, size, widening) + (distance > 0) * per_sign

    def forward(self, length: int) -> Tensor:
        """Bias (num_heads, length, length), query position first."""
        position = torch.arange(length, device=self.bias.weight.device)
        return rearrange(self.bias(self.bucket(position[None, :] - position[:, None])), "i j heads -> heads i j")


class _Attention(nn.Module):
    """Normalisation and projections that spatial and depth attention share; a new layer adds nothing to its input."""

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        hidden = num_heads * head_channels
        self.num_heads, self.head_channels = num_heads, head_channels
        self.norm = nn.LayerNorm(channels)
        # three matrices, not one: each product is then contiguous, which saves copies in both directions
        self.to_q = nn.Linear(channels, hidden, bias=False)
        self.to_k = nn.Linear(channels, hidden, bias=False)
        self.to_v = nn.Linear(channels, hidden, bias=False)
        self.to_out = nn.Linear(hidden, channels, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def _split(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.num_heads, -1))


class SpatialAttention(_Attention):
    """Residual attention among the positions of each slice; slices do not see each other.

    Args:
        channels: of the feature map.
        num_heads, head_channels: heads and channels of each.
        kind: "full", "linear", or "auto": full where the plane has at most 32 x 32 positions.
    """

    def __init__(self, channels: int, num_heads: int, head_channels: int, kind: SpatialKind = "auto") -> None:
        super().__init__(channels, num_heads, head_channels)
        self.kind = kind

    def _full(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(tokens), "n p (heads e) -> n heads p e", heads=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "n heads p e -> n p (heads e)"))

    def _linear(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > tokens.shape[2]:
            return self._linear_over_many_positions(tokens)
        q, k, v = (self._split(project(tokens)) for project in (self.to_q, self.to_k, self.to_v))
        context = torch.einsum("n p h e, n p h f -> n h e f", k.softmax(1), v)
        return self.to_out(torch.einsum("n p h e, n h e f -> n p h f", q.softmax(-1), context).flatten(2))

    def _linear_over_many_positions(self, tokens: Tensor) -> Tensor:
        """The same product in another order: values and output are projected after the sum over positions.

        ``sum_p k_p v_p = (sum_p k_p x_p) W_v`` and ``(q C) W_o = q (C W_o)``: two of the four large projections act on
        one small matrix a slice and head. Positions come last, so that both softmaxes and products read rows.
        """
        n, heads = len(tokens), self.num_heads
        q, k = (torch.bmm(m.weight.expand(n, -1, -1), tokens.transpose(1, 2)) for m in (self.to_q, self.to_k))
        q = q.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
        context = rearrange(k.softmax(2) @ tokens, "n (heads e) c -> heads (n e) c", heads=heads)
        context = context @ rearrange(self.to_v.weight, "(heads f) c -> heads c f", heads=heads)
        context = context @ rearrange(self.to_out.weight, "c (heads f) -> heads f c", heads=heads)
        return q.transpose(1, 2) @ rearrange(context, "heads (n e) c -> n (heads e) c", n=n)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape; n counts slices."""
        height, width = x.shape[2:]
        if height * width == 1:
            return x
        full = self.kind == "full" or (self.kind == "auto" and height * width <= FULL_ATTENTION_POSITIONS)
        tokens = self.norm(rearrange(x, "n c h w -> n (h w) c"))
        y = self._full(tokens) if full else self._linear(tokens)
        return x + rearrange(y, "n (h w) c -> n c h w", h=height)


class DepthAttention(_Attention):
    """Residual attention among the slices at each plane position; the only path between slices.

    Args:
        channels: of the feature map.
        num_heads, head_channels: heads and channels of each; ``head_channels`` is even.
    """

    def forward(self, x: Tensor, positions: DepthPositions) -> Tensor:
        """Map ((d b), c, h, w) to the same shape; d is the length of ``positions``."""
        (depth, _), (height, width) = positions.rotation.shape, x.shape[2:]
        tokens = rearrange(self.norm(rearrange(x, "(d b) c h w -> d (b h w) c", d=depth)), "d p c -> (p d) c")
        # heads outermost, so that no product below has to copy its input
        tokens = tokens.expand(self.num_heads, -1, -1)
        q, k, v = (
            torch.bmm(tokens, rearrange(project.weight, "(heads e) c -> heads c e", heads=self.num_heads)).unflatten(
                1, (-1, depth)
            )
            for project in (self.to_q, self.to_k, self.to_v)
        )
        q = rotate(q, positions.rotation * self.head_channels**-0.5)
        k = rotate(k, positions.rotation)
        y = (self._in_products if x.device.type == "cpu" else self._in_kernels)(q, k, v, positions.bias)
        w_out = rearrange(self.to_out.weight, "c (heads e) -> heads e c", heads=self.num_heads)
        y = torch.bmm(rearrange(y, "heads p d e -> heads (p d) e"), w_out).sum(0)
        return x + rearrange(y, "(b h w d) c -> (d b) c h w", d=depth, h=height, w=width)

    def _in_products(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Many short sequences, for which the fused CPU kernel took twice as long or more."""
        logits = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], -1)
        weights = (logits + bias[:, None]).softmax(-1).to(v.dtype)
        return torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).view(v.shape)

    def _in_kernels(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        mask = bias.to(q.dtype)
        q, k, v = (rearrange(t, "heads p d e -> p heads d e") for t in (q, k, v))
        chunks = [t.split(MAX_KERNEL_BATCH) for t in (q, k, v)]
        y = torch.cat(
            [
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
                for q, k, v in zip(*chunks, strict=True)
            ]
        )
        return rearrange(y, "p heads d e -> heads p d e")
