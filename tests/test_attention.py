"""Properties of spatial and depth attention."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch import Tensor

from medical_diffusion.networks.attention import (
    DepthAttention,
    DepthPositions,
    RelativePositionBias,
    SpatialAttention,
    rotary_rotation,
    rotate,
)

CHANNELS, HEADS, HEAD_CHANNELS = 16, 4, 8


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere, those that start at 0 included."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def positions(depth: int, bias: RelativePositionBias | None = None) -> DepthPositions:
    bias = bias or awake(RelativePositionBias(HEADS))
    return DepthPositions(rotary_rotation(depth, HEAD_CHANNELS), bias(depth))


def linear_attention_as_defined(layer: SpatialAttention, x: Tensor) -> Tensor:
    """Equation 3 of "Efficient Attention", one head and one slice at a time."""
    tokens = layer.norm(rearrange(x, "n c h w -> n (h w) c"))
    slices = []
    for slice_tokens in tokens:
        heads = [
            (slice_tokens @ q.T).softmax(-1) @ ((slice_tokens @ k.T).softmax(0).T @ (slice_tokens @ v.T))
            for q, k, v in zip(*(p.weight.chunk(HEADS) for p in (layer.to_q, layer.to_k, layer.to_v)), strict=True)
        ]
        slices.append(layer.to_out(torch.cat(heads, dim=-1)))
    return x + rearrange(torch.stack(slices), "n (h w) c -> n c h w", h=x.shape[2])


@pytest.mark.parametrize("plane", [(7, 5), (3, 4), (1, 9)])
def test_linear_attention_is_its_definition_in_both_orders_of_the_products(plane):
    torch.manual_seed(0)
    layer = awake(SpatialAttention(CHANNELS, HEADS, HEAD_CHANNELS, "linear"))
    x = torch.randn(3, CHANNELS, *plane)
    torch.testing.assert_close(layer(x), linear_attention_as_defined(layer, x), rtol=1e-4, atol=1e-5)


def test_auto_is_full_up_to_32_squared_positions_and_linear_beyond():
    torch.manual_seed(0)
    auto = awake(SpatialAttention(CHANNELS, HEADS, HEAD_CHANNELS, "auto"))
    full, linear = (SpatialAttention(CHANNELS, HEADS, HEAD_CHANNELS, kind).eval() for kind in ("full", "linear"))
    for layer in (full, linear):
        layer.load_state_dict(auto.state_dict())
    at_most, beyond = torch.randn(1, CHANNELS, 32, 32), torch.randn(1, CHANNELS, 33, 32)
    assert torch.equal(auto(at_most), full(at_most))
    assert torch.equal(auto(beyond), linear(beyond))
    assert not torch.allclose(full(at_most), linear(at_most), atol=1e-3)


def test_full_attention_does_not_depend_on_the_order_of_positions():
    torch.manual_seed(0)
    layer = awake(SpatialAttention(CHANNELS, HEADS, HEAD_CHANNELS, "full"))
    x = torch.randn(2, CHANNELS, 4, 6)
    torch.testing.assert_close(layer(x.flip(2)), layer(x).flip(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "linear"])
def test_spatial_attention_leaves_slices_apart_and_single_positions_alone(kind):
    torch.manual_seed(0)
    layer = awake(SpatialAttention(CHANNELS, HEADS, HEAD_CHANNELS, kind))
    x = torch.randn(3, CHANNELS, 4, 4)
    other = torch.cat([x[:1], torch.randn_like(x[1:])])
    torch.testing.assert_close(layer(x)[0], layer(other)[0])
    single = torch.randn(3, CHANNELS, 1, 1)
    assert torch.equal(layer(single), single)


def test_rotary_embedding_makes_logits_depend_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, HEAD_CHANNELS)
    rotation = rotary_rotation(12, HEAD_CHANNELS)
    logits = rotate(q.expand(12, -1), rotation) @ rotate(k.expand(12, -1), rotation).T
    for distance in range(-11, 12):
        diagonal = logits.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert logits.diagonal(0)[0] == pytest.approx(float(q @ k), abs=1e-5)
    assert logits[0].std() > 0.1
    torch.testing.assert_close(rotate(q.expand(12, -1), rotation).norm(dim=-1), q.norm().expand(12))


def test_relative_position_bias_knows_distance_and_sign_and_takes_any_depth():
    bias = RelativePositionBias(HEADS, num_buckets=32, max_distance=64)
    torch.nn.init.normal_(bias.bias.weight)
    table = bias(200)
    assert table.shape == (HEADS, 200, 200)
    torch.testing.assert_close(table[:, 3, 5], table[:, 100, 102])
    assert not torch.allclose(table[:, 3, 5], table[:, 5, 3])
    torch.testing.assert_close(table[:, :20, :20], bias(20))
    buckets = bias.bucket(torch.arange(-200, 201))
    assert buckets.min() == 0
    assert buckets.max() == 31
    assert len(bias.bucket(torch.arange(-7, 8)).unique()) == 15
    assert torch.all(buckets[:201].diff() <= 0)
    assert torch.all(buckets[201:].diff() >= 0)
    assert bias.bucket(torch.tensor(64)) == bias.bucket(torch.tensor(200))


@pytest.mark.parametrize("batch", [1, 3])
def test_depth_attention_is_attention_over_slices_at_one_position(batch):
    torch.manual_seed(0)
    layer, depth, plane = awake(DepthAttention(CHANNELS, HEADS, HEAD_CHANNELS)), 5, (3, 2)
    where = positions(depth)
    x = torch.randn(depth * batch, CHANNELS, *plane)
    expected = x.clone()
    column = layer.norm(rearrange(x, "(d b) c h w -> b h w d c", d=depth))
    for b in range(batch):
        for i in range(plane[0]):
            for j in range(plane[1]):
                q, k, v = (
                    rearrange(p(column[b, i, j]), "d (heads e) -> heads d e", heads=HEADS)
                    for p in (layer.to_q, layer.to_k, layer.to_v)
                )
                logits = rotate(q, where.rotation) @ rotate(k, where.rotation).mT / HEAD_CHANNELS**0.5 + where.bias
                y = layer.to_out(rearrange(logits.softmax(-1) @ v, "heads d e -> d (heads e)"))
                expected[b::batch, :, i, j] += y
    torch.testing.assert_close(layer(x, where), expected, rtol=1e-4, atol=1e-5)


def test_products_and_kernels_agree(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("medical_diffusion.networks.attention.MAX_KERNEL_BATCH", 7)
    layer = DepthAttention(CHANNELS, HEADS, HEAD_CHANNELS)
    q, k, v = torch.randn(3, HEADS, 20, 6, HEAD_CHANNELS)
    bias = torch.randn(HEADS, 6, 6)
    torch.testing.assert_close(layer._in_products(q, k, v, bias), layer._in_kernels(q, k, v, bias))


def test_depth_attention_without_bias_and_rotation_does_not_know_the_order_of_slices():
    torch.manual_seed(0)
    layer, depth = awake(DepthAttention(CHANNELS, HEADS, HEAD_CHANNELS)), 4
    x = torch.randn(depth, CHANNELS, 2, 2)
    still = DepthPositions(torch.ones(depth, HEAD_CHANNELS // 2, dtype=torch.complex64), torch.zeros(HEADS, 4, 4))
    torch.testing.assert_close(layer(x.flip(0), still), layer(x, still).flip(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(x.flip(0), positions(depth)), layer(x, positions(depth)).flip(0), atol=1e-3)
