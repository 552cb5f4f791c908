"""Properties of the diffusion UNet."""

from __future__ import annotations

import pytest
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.networks.attention import DepthAttention
from medical_diffusion.networks.small_plane_conv import prefers_small_plane
from medical_diffusion.networks.unet import UNet
from medical_diffusion.networks.unet_blocks import Downsample, SliceConv, Upsample


def small(**options) -> UNet:
    return UNet(**{"in_channels": 3, "width": 8, "num_heads": 2, "head_channels": 8, **options})


def awake(network: UNet) -> UNet:
    """A network whose zero-initialised weights have left zero."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize(("width", "millions"), [(16, 3.0), (32, 10.0), (64, 35.7)])
def test_parameters_are_those_of_the_published_networks(width, millions):
    with torch.device("meta"):
        network = UNet(width=width)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    "size", [(8, 8, 4), (8, 8, 1), (11, 13, 3), (4, 4, 2), (16, 4, 5), (1, 9, 2), (1, 1, 1), (2, 2, 40)]
)
@pytest.mark.parametrize("kind", ["auto", "linear"])
def test_every_size_keeps_its_shape(size, kind):
    network = awake(small(spatial_attention=kind))
    x = torch.randn(2, 3, *size)
    y = network(x, torch.tensor([3, 200]))
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert y.std() > 0


def test_out_channels_and_fewer_levels():
    network = awake(small(out_channels=6, channel_multipliers=(1, 3)))
    assert network(torch.randn(1, 3, 6, 6, 2), 5).shape == (1, 6, 6, 6, 2)


def test_a_new_network_predicts_zero():
    assert not small()(torch.randn(2, 3, 8, 8, 3), torch.tensor([0, 299])).any()


@pytest.mark.parametrize("kind", ["full", "linear"])
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_gradients_reach_every_parameter(kind, use_checkpoint):
    network = awake(small(spatial_attention=kind, num_classes=2, use_checkpoint=use_checkpoint)).train()
    x = torch.randn(2, 3, 16, 16, 3)
    network(x, torch.tensor([3, 200]), torch.tensor([0, 2])).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_checkpointing_changes_memory_and_nothing_else():
    plain, frugal = awake(small()), small(use_checkpoint=True)
    frugal.load_state_dict(plain.state_dict())
    x, gradients = torch.randn(1, 3, 8, 8, 2), []
    for network in (plain, frugal):
        network(x, 7).square().mean().backward()
        gradients.append(network.first.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["full", "linear"])
def test_slices_meet_in_depth_attention_only(kind):
    network = awake(small(spatial_attention=kind))
    x = torch.randn(1, 3, 8, 8, 4)
    other = x.clone()
    other[..., 2] = torch.randn(1, 3, 8, 8)
    change = (network(x, 9) - network(other, 9)).abs().amax(dim=(0, 1, 2, 3))
    assert (change > 1e-3).all()

    for module in network.modules():
        if isinstance(module, DepthAttention):
            torch.nn.init.zeros_(module.to_out.weight)
    change = (network(x, 9) - network(other, 9)).abs().amax(dim=(0, 1, 2, 3))
    assert change[2] > 1e-2
    assert (change[[0, 1, 3]] < 1e-5).all()


@pytest.mark.parametrize("kind", ["full", "linear"])
def test_depth_attention_alone_cannot_tell_where_a_volume_ends(kind):
    equal = torch.randn(1, 3, 8, 8, 1).expand(-1, -1, -1, -1, 5)
    for depth_embedding in (False, True):
        network = awake(small(spatial_attention=kind, depth_embedding=depth_embedding))
        y = network(equal, 100)
        differ = (y - y[..., :1]).abs().amax(dim=(0, 1, 2, 3))[1:] > 1e-3
        assert differ.all() if depth_embedding else not differ.any()


def test_a_new_depth_embedding_changes_nothing():
    without = awake(small(depth_embedding=False))
    network = small()
    network.load_state_dict(without.state_dict(), strict=False)
    x = torch.randn(2, 3, 8, 8, 4)
    torch.testing.assert_close(network(x, 20), without(x, 20))


def test_a_volume_without_depth_attention_is_its_slices():
    network = awake(small(depth_attention=False))
    assert not any("depth" in name for name, _ in network.named_parameters())
    x = torch.randn(1, 3, 8, 8, 3)
    slices = [network(x[..., i : i + 1], 50) for i in range(3)]
    torch.testing.assert_close(network(x, 50), torch.cat(slices, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "linear"])
@pytest.mark.parametrize("size", [(8, 6, 3), (8, 8, 1)])
def test_a_batch_equals_its_samples_one_by_one(kind, size):
    network = awake(small(spatial_attention=kind, num_classes=4))
    x, timesteps, labels = torch.randn(3, 3, *size), torch.tensor([1, 50, 250]), torch.tensor([0, 4, 2])
    one_by_one = [network(x[i : i + 1], timesteps[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(network(x, timesteps, labels), torch.cat(one_by_one), rtol=1e-4, atol=1e-5)


def test_memory_format_of_the_input_does_not_matter():
    network = awake(small())
    x = torch.randn(2, 3, 8, 8, 3)
    y = network(x.contiguous(memory_format=torch.channels_last_3d), 3)
    torch.testing.assert_close(y, network(x, 3))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_linear_and_full_attention_are_different_functions_of_the_same_weights():
    full = awake(small(spatial_attention="full"))
    linear = small(spatial_attention="linear")
    linear.load_state_dict(full.state_dict())
    x = torch.randn(1, 3, 8, 8, 2)
    assert not torch.allclose(full(x, 5), linear(x, 5), atol=1e-4)


@pytest.mark.parametrize("timesteps", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 7.0])])
def test_a_number_is_a_timestep_for_all(timesteps):
    network = awake(small())
    x = torch.randn(2, 3, 4, 4, 2)
    expected = network(x, torch.tensor([7, 7]))
    assert torch.equal(network(x, timesteps), expected)
    assert not torch.allclose(network(x, 8), expected, atol=1e-4)


def test_classes_change_the_prediction_and_none_is_the_last_index():
    network = awake(small(num_classes=2))
    x = torch.randn(2, 3, 4, 4, 2)
    predictions = [network(x, 5, labels) for labels in (0, 1, None)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(predictions[i], predictions[j], atol=1e-4)
    assert torch.equal(network(x, 5, torch.tensor([2, 2])), predictions[2])
    torch.testing.assert_close(network(x, 5, torch.tensor([0, 1]))[0], predictions[0][0])


def test_bfloat16_autocast_stays_near_float32():
    network = awake(small(spatial_attention="linear"))
    x = torch.randn(1, 3, 8, 8, 3)
    expected = network(x, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x, 5)
    assert (y.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("plane", [(2, 2), (1, 4), (4, 1), (1, 3), (1, 1), (2, 1)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_products_for_small_planes_are_the_convolution(plane, channels_last):
    torch.manual_seed(0)
    layer, x = SliceConv(160, 224), torch.randn(3, 160, *plane)
    assert prefers_small_plane(x, 224)
    assert not prefers_small_plane(x, 160) and not prefers_small_plane(x[:1], 224)
    assert not prefers_small_plane(torch.randn(3, 160, 1, 5), 224)
    if channels_last:
        layer, x = (t.to(memory_format=torch.channels_last) for t in (layer, x))
    both = [x.clone().requires_grad_() for _ in range(2)]
    expected = torch.nn.functional.conv2d(both[0], layer.weight, layer.bias, padding=1)
    y, upstream = layer(both[1]), torch.randn(3, 224, *plane)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected, (both[0], layer.weight, layer.bias), upstream)
    for ours, plain in zip(torch.autograd.grad(y, (both[1], layer.weight, layer.bias), upstream), wanted, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plane", [(8, 8), (7, 5), (1, 6), (1, 1)])
def test_planes_are_halved_upwards_and_restored(plane):
    h = Downsample(4)(torch.randn(2, 4, *plane))
    assert h.shape[2:] == tuple(-(-n // 2) for n in plane)
    assert Upsample(4)(h, plane).shape[2:] == plane


def test_export_gives_the_same_prediction():
    network = awake(small(channel_multipliers=(1, 2), spatial_attention="linear"))
    x, timesteps = torch.randn(2, 3, 4, 4, 2), torch.tensor([3, 70])
    program = torch.export.export(network, (x, timesteps))
    torch.testing.assert_close(program.module()(x, timesteps), network(x, timesteps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 20}, r"multiple of norm_groups \(8\).*Received: 20.*Use for example 16"),
        ({"channel_multipliers": ()}, "channel_multipliers must be positive"),
        ({"channel_multipliers": (1, 0)}, "channel_multipliers must be positive"),
        ({"head_channels": 7}, "head_channels must be even.*Received: 7"),
        ({"spatial_attention": "ful"}, "auto, full, linear or none.*Did you mean full"),
        ({"skip": "ad"}, "skip must be concatenate or add.*Did you mean add"),
        ({"blocks_per_level": 0}, "blocks_per_level must be a positive whole number.*Received: 0"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 4, 4, 4, 2), 1), r"x must have shape \(B, 3, h, w, d\).*\(1, 4, 4, 4, 2\)"),
        ((torch.zeros(1, 3, 4, 4), 1), r"x must have shape"),
        ((torch.zeros(3, 3, 4, 4, 2), torch.tensor([1, 2])), "timesteps must be one number, or one for each of the 3"),
        ((torch.zeros(2, 3, 4, 4, 2), 1, torch.tensor([0, 3])), r"class_labels must lie in \[0, 2\].*\[0, 3\]"),
        ((torch.zeros(2, 3, 4, 4, 2), 1, torch.tensor([0, 1, 1])), "class_labels must be one number, or one for each"),
    ],
)
def test_bad_inputs_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        small(num_classes=2)(*arguments)


def test_labels_without_classes_are_refused():
    with pytest.raises(UserError, match=r"class_labels need a network with classes.*num_classes"):
        small()(torch.zeros(1, 3, 4, 4, 2), 1, 0)


MEDFUSION = {
    "blocks_per_level": 1,
    "middle": False,
    "skip": "add",
    "spatial_attention": "none",
    "depth_attention": False,
}
OTHERS = [MEDFUSION, {"middle": False}, {"blocks_per_level": 3}, {"skip": "add"}, {"spatial_attention": "none"}]


def test_medfusion_is_a_configuration():
    with torch.device("meta"):
        network = UNet(8, width=256, channel_multipliers=(1, 1, 2, 4), num_classes=2, **MEDFUSION)
    parts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in network.named_children()}
    assert sum(parts.values()) == pytest.approx(55.1, abs=0.05)
    resampling = parts["downsample"] + parts["upsample"]
    # with 3 x 3 kernels for resampling it would be what the paper counts, 49.9
    assert sum(parts.values()) - resampling * 7 / 16 == pytest.approx(49.6, abs=0.05)
    assert not any("attention" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("size", [(8, 8, 1), (7, 5, 1), (1, 9, 1), (8, 6, 3)])
@pytest.mark.parametrize("options", OTHERS)
def test_other_configurations_train_at_every_size(size, options):
    network = awake(small(channel_multipliers=(1, 1, 2), num_classes=2, **options)).train()
    x = torch.randn(2, 3, *size)
    y = network(x, torch.tensor([3, 200]), torch.tensor([0, 2]))
    assert y.shape == x.shape
    y.square().mean().backward()
    # a plane of one position has nothing to attend to
    needed = [(n, p) for n, p in network.named_parameters() if "attention" not in n and "depth" not in n]
    assert [name for name, p in needed if p.grad is None or not p.grad.any()] == []


def test_the_number_of_blocks_is_what_was_asked():
    for blocks in (1, 2, 3):
        network = small(blocks_per_level=blocks)
        assert {len(level.blocks) for level in (*network.down, network.middle, *network.up)} == {blocks}
