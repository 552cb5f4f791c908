"""Autoencoder and its building blocks: sizes, parameters, memory format, depth 1, gradients, whitening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.networks import Autoencoder, GaussianBottleneck, VectorQuantizer
from medical_diffusion.networks.blocks import NormActConv, ResidualBlock
from medical_diffusion.networks.codec import MIN_EIGENVALUE
from medical_diffusion.networks.conv import (
    Convolution,
    TransposedConvolution,
    UpsamplingConvolution,
    channels_last,
    replicate_pad,
)

Size = tuple[int, int, int]


def small(image_size: tuple[int, int, int] = (16, 16, 16), **options: object) -> Autoencoder:
    options = {"channels": 8, "bottleneck": VectorQuantizer(64, 8, init_batches=1), **options}
    return Autoencoder(image_size, **options)  # type: ignore[arg-type]


def gaussian(image_size: tuple[int, int, int] = (16, 16, 16), **options: object) -> Autoencoder:
    options = {"bottleneck": GaussianBottleneck(8), "latent_normalization": "standardize", **options}
    return small(image_size, **options)


#: every pair of bottleneck and architecture
KINDS = [(make, architecture) for make in (small, gaussian) for architecture in ("vqgan", "medfusion")]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_the_papers() -> None:
    network = Autoencoder(64, compression=4)
    assert parameters(network.encoder) == 442_088
    assert parameters(network.decoder) == 948_865


def test_the_parameter_count_of_medfusion_is_near_the_published_one() -> None:
    with torch.device("meta"):
        network = gaussian((256, 256, 1), channels=64, compression=(8, 8, 1), architecture="medfusion")
    assert parameters(network) == 13_540_177
    assert parameters(network) == pytest.approx(13.3e6, rel=0.02)


SIZES = [
    ((16, 16, 16), 4, (4, 4, 4)),
    ((16, 16, 16), 2, (8, 8, 8)),
    ((24, 16, 8), (4, 4, 2), (6, 4, 4)),
    ((16, 24, 5), (4, 2, 1), (4, 12, 5)),
    ((16, 24, 1), 4, (4, 6, 1)),
    ((1, 16, 8), 2, (1, 8, 4)),
    ((9, 7, 5), 1, (9, 7, 5)),
]


@pytest.mark.parametrize(("image_size", "compression", "latent"), SIZES)
@pytest.mark.parametrize(("make", "architecture"), KINDS)
def test_shapes(
    make: Callable[..., Autoencoder], architecture: str, image_size: Size, compression: int, latent: Size
) -> None:
    network = make(image_size, compression=compression, architecture=architecture)
    x = torch.randn(2, 1, *image_size)
    assert network.latent_size == latent
    h = network.encode(x)
    assert h.shape == (2, 8, *latent)
    assert network.decode(h).shape == x.shape
    (reconstruction,), bottleneck = network.reconstruct(x)
    assert reconstruction.shape == network(x).shape == x.shape
    if make is small:
        assert bottleneck.indices.shape == (2, *latent)
    else:
        assert bottleneck.indices is None


@pytest.mark.parametrize(("image_size", "compression", "latent"), SIZES)
@pytest.mark.parametrize(("make", "architecture"), KINDS)
def test_every_parameter_gets_a_gradient(
    make: Callable[..., Autoencoder], architecture: str, image_size: Size, compression: int, latent: Size
) -> None:
    supervised = compression != 1
    network = make(image_size, compression=compression, architecture=architecture, deep_supervision=supervised)
    reconstructions, bottleneck = network.reconstruct(torch.randn(2, 1, *image_size))
    assert len(reconstructions) == 1 + supervised
    (sum(r.square().mean() for r in reconstructions) + bottleneck.loss).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("image_size", "compression", "half"),
    [((16, 16, 8), 4, (8, 8, 4)), ((24, 16, 1), (8, 4, 4), (12, 8, 1)), ((16, 8, 5), (4, 2, 1), (8, 4, 5))],
)
@pytest.mark.parametrize("architecture", ["vqgan", "medfusion"])
def test_deep_supervision_adds_a_head_and_changes_nothing_else(
    architecture: str, image_size: Size, compression: int, half: Size
) -> None:
    plain = gaussian(image_size, compression=compression, architecture=architecture, in_channels=3).eval()
    supervised = gaussian(
        image_size, compression=compression, architecture=architecture, in_channels=3, deep_supervision=True
    ).eval()
    result = supervised.load_state_dict(plain.state_dict(), strict=False)
    assert result.missing_keys == ["half_head.weight", "half_head.bias"] and not result.unexpected_keys
    x = torch.randn(2, 3, *image_size)
    (full, coarse), _ = supervised.reconstruct(x)
    assert coarse.shape == (2, 3, *half)
    for image in (full, supervised(x), supervised.decode(supervised.encode(x))):
        torch.testing.assert_close(image, plain(x))


def test_a_batch_equals_its_images_one_by_one() -> None:
    network = gaussian((16, 12, 1), architecture="medfusion").eval()
    x = torch.randn(3, 1, 16, 12, 1)
    torch.testing.assert_close(network(x), torch.cat([network(image[None]) for image in x]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 3, 5), (4, 3, 1), (1, 1, 1)])
def test_upsampling_convolution_equals_its_plain_form(size: Size) -> None:
    layer = UpsamplingConvolution(size, 3, 4, (2, 2, 1), padding_mode="zeros")
    x = torch.randn(2, 3, *size)
    large = x
    for axis in (2, 3):
        if x.shape[axis] > 1:
            large = large.repeat_interleave(2, axis)
    expected = F.conv3d(large, layer.weight, layer.bias, padding=[k // 2 for k in layer.kernel_size])
    assert layer.out_size == tuple(expected.shape[2:])
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image_size", [(16, 16, 16), (16, 16, 1)])
@pytest.mark.parametrize("architecture", ["vqgan", "medfusion"])
def test_maps_stay_channels_last(architecture: str, image_size: tuple[int, int, int]) -> None:
    network, checked = small(image_size, architecture=architecture), []

    def check(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.is_contiguous(memory_format=torch.channels_last_3d), module
        assert output.shape[1] == 1 or output.stride(1) == 1, module
        checked.append(module)

    for module in network.modules():
        if isinstance(module, Convolution | TransposedConvolution | ResidualBlock | NormActConv):
            module.register_forward_hook(check)
    network(torch.randn(2, 1, *image_size))
    assert len(checked) >= 20


@pytest.mark.parametrize("padding_mode", ["replicate", "zeros"])
@pytest.mark.parametrize("size", [(7, 6, 5), (7, 6, 1), (7, 1, 4), (1, 1, 1)])
def test_norm_act_conv_equals_its_plain_form(size: tuple[int, int, int], padding_mode: str) -> None:
    """Value and every gradient, in float64, of the block that recomputes its activations."""
    block = NormActConv(size, 8, 4, 2, padding_mode=padding_mode).double()  # type: ignore[arg-type]
    nn.init.normal_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    x = torch.randn(2, 8, *size, dtype=torch.double, requires_grad=True)
    border = [int(n > 1) for n in size]
    h = F.silu(block.norm(x))
    if padding_mode == "replicate":
        plain = F.conv3d(replicate_pad(h, border), block.conv.weight, block.conv.bias)
    else:
        plain = F.conv3d(h, block.conv.weight, block.conv.bias, padding=border)
    fused = block(x)
    torch.testing.assert_close(fused, plain)
    leaves, cotangent = (x, *block.parameters()), torch.randn_like(plain)
    torch.testing.assert_close(
        torch.autograd.grad(fused, leaves, cotangent), torch.autograd.grad(plain, leaves, cotangent)
    )


def test_replicate_pad_repeats_the_border() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3, 1)
    rows = [[0, 0, 1, 2, 2], [0, 0, 1, 2, 2], [3, 3, 4, 5, 5], [3, 3, 4, 5, 5]]
    assert replicate_pad(x, (1, 1, 0))[0, 0, :, :, 0].tolist() == rows


def test_one_channel_is_laid_out_channels_last() -> None:
    x = channels_last(torch.randn(2, 1, 4, 5, 6))
    assert x.stride() == (120, 1, 30, 6, 1)
    assert F.conv3d(x, torch.randn(4, 1, 3, 3, 3)).stride(1) == 1


def reference_2d(network: Autoencoder, x: Tensor) -> Tensor:
    """The same autoencoder written with 2D convolutions and the squeezed weights, without the bottleneck."""

    def pad(h: Tensor, p: int) -> Tensor:
        return F.pad(h, (p,) * 4, mode="replicate")

    def norm_act_conv(h: Tensor, block: NormActConv) -> Tensor:
        h = F.silu(F.group_norm(h, block.norm.num_groups, block.norm.weight, block.norm.bias, 1e-6))
        return F.conv2d(pad(h, block.conv.kernel_size[0] // 2), block.conv.weight[..., 0], block.conv.bias)

    h = x.squeeze(-1)
    for layer in [*network.encoder, *network.decoder]:
        if isinstance(layer, Convolution):
            border = (layer.kernel_size[0] - layer.stride[0]) // 2
            h = F.conv2d(pad(h, border), layer.weight[..., 0], layer.bias, layer.stride[0])
        elif isinstance(layer, TransposedConvolution):
            h = F.conv_transpose2d(pad(h, 1), layer.weight[..., 0], layer.bias, 2, padding=3)
        elif isinstance(layer, ResidualBlock):
            h = h + norm_act_conv(norm_act_conv(h, layer.first), layer.second)
        else:
            h = norm_act_conv(h, layer)
    return h.unsqueeze(-1)


def test_depth_1_equals_the_2d_network() -> None:
    network = small((16, 12, 1))
    x = torch.randn(2, 1, 16, 12, 1)
    torch.testing.assert_close(network.decode(network.encode(x)), reference_2d(network, x), atol=1e-5, rtol=1e-5)


def test_a_constant_volume_has_no_border() -> None:
    """Replicated borders: a constant image has a constant latent."""
    h = small().encode(torch.full((1, 1, 16, 16, 16), 0.3))
    assert (h - h[:, :, :1, :1, :1]).abs().max() < 1e-5


def test_bfloat16_autocast_is_close_to_float32() -> None:
    network = small()
    x = torch.randn(1, 1, 16, 16, 16)
    exact = network.decode(network.encode(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = network.decode(network.encode(x))
    coarse.float().square().mean().backward()
    assert (coarse.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize(("channels", "per_group"), [(4, 2), (8, 2), (16, 2), (64, 8)])
def test_narrow_medfusion_never_normalises_a_channel_alone(channels: int, per_group: int) -> None:
    network = gaussian((16, 16, 1), channels=channels, architecture="medfusion")
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert min(m.num_channels // m.num_groups for m in norms) == per_group
    assert max(m.num_groups for m in norms) <= 8


WHITENED = [(small, "codebook_range"), (small, "standardize"), (gaussian, "standardize"), (gaussian, "whiten")]


@pytest.mark.parametrize(("make", "normalization"), WHITENED)
@pytest.mark.parametrize("image_size", [(16, 16, 16), (16, 16, 1)])
def test_whitened_latents_round_trip_and_survive_the_checkpoint(
    tmp_path: Path, make: Callable[..., Autoencoder], normalization: str, image_size: Size
) -> None:
    network = make(image_size, latent_normalization=normalization)
    x = torch.randn(4, 1, *image_size)
    for _ in range(3):
        network(x)
    network.eval()
    with torch.no_grad():
        h = network.encode(x)
        network.set_latent_statistics(iter([h[:1], h[1:]]))
        z = network.encode_latents(x)
        if normalization == "whiten":
            pooled = z.movedim(1, 0).flatten(1)
            torch.testing.assert_close(torch.cov(pooled, correction=0), torch.eye(8), atol=1e-3, rtol=0)
        if normalization != "codebook_range":
            torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(8), atol=1e-4, rtol=0)
            torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(8), atol=1e-3, rtol=0)
        else:
            codes = network.bottleneck.codebook[network.bottleneck.active_codes()]
            whitened = (codes - network.latent_shift.flatten()) / network.latent_scale.flatten()
            assert whitened.min().item() == pytest.approx(-1, abs=1e-5)
            assert whitened.max().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(network.decode_latents(z), network(x), atol=1e-4, rtol=1e-4)
        assert torch.equal(network.train().encode_latents(x), z)  # no draw, in training mode neither
        torch.save(network.state_dict(), tmp_path / "autoencoder.pt")
        other = make(image_size, latent_normalization=normalization).eval()
        other.load_state_dict(torch.load(tmp_path / "autoencoder.pt", weights_only=True))
        assert torch.equal(other.encode_latents(x), z)


def test_whitening_leaves_a_direction_that_does_not_vary_small() -> None:
    """Two channels that are one: their difference is rounding noise, which must not come out at full strength."""
    network, h = gaussian(latent_normalization="whiten"), torch.randn(2, 8, 4, 4, 4)
    h[:, 1] = h[:, 0] + 1e-6 * torch.randn(2, 4, 4, 4)
    network.set_latent_statistics([h])
    difference = torch.zeros(8)
    difference[0], difference[1] = 0.5**0.5, -(0.5**0.5)
    gain = (network.latent_whitening @ difference).norm().item()
    assert gain == pytest.approx(MIN_EIGENVALUE**-0.5, rel=1e-3)
    torch.testing.assert_close(network.latent_whitening @ network.latent_coloring, torch.eye(8), atol=1e-4, rtol=0)


def test_errors() -> None:
    with pytest.raises(UserError, match=r"image_size must be divisible by the compression .* along D"):
        Autoencoder((16, 16, 6), compression=4)
    with pytest.raises(UserError, match="compression must be a power of two"):
        Autoencoder(18, compression=3)
    with pytest.raises(UserError, match=r"latent_normalization must be known.*codebook_range"):
        small(latent_normalization="codebok_range")
    with pytest.raises(UserError, match=r"codebook_range' needs a bottleneck with a codebook.*Use .* 'standardize'"):
        Autoencoder(16, bottleneck=GaussianBottleneck(8))
    with pytest.raises(UserError, match=r"architecture must be known.*Did you mean medfusion"):
        small(architecture="medfuson")
    with pytest.raises(UserError, match="deep_supervision needs a compression of at least 2"):
        small((9, 7, 5), compression=1, deep_supervision=True)
    with pytest.raises(UserError, match="norm_groups must divide the 16 channels"):
        small(norm_groups=3)
    with pytest.raises(UserError, match="padding_mode must be known"):
        small(padding_mode="reflect")
    network = small()
    with pytest.raises(UserError, match=r"the image must be \(B, 1, 16, 16, 16\)"):
        network(torch.randn(1, 1, 16, 16, 8))
    with pytest.raises(UserError, match=r"the latent must be \(B, 8, 4, 4, 4\)"):
        network.decode(torch.randn(1, 4, 4, 4, 4))
    with pytest.raises(UserError, match="latent statistics must be set"):
        network.encode_latents(torch.randn(1, 1, 16, 16, 16))
    with pytest.raises(UserError, match="latent statistics must be set"):
        network.decode_latents(torch.randn(1, 8, 4, 4, 4))
    with pytest.raises(UserError, match="needs the latents of the training set"):
        small(latent_normalization="standardize").set_latent_statistics()
    with pytest.raises(UserError, match="'whiten' needs the latents of the training set"):
        small(latent_normalization="whiten").set_latent_statistics()
    with pytest.raises(UserError, match="latents must vary in every channel"):
        small(latent_normalization="standardize").set_latent_statistics([torch.ones(1, 8, 4, 4, 4)])
    with pytest.raises(UserError, match="kernel_size - stride must be even"):
        TransposedConvolution((4, 4, 4), 1, 1, kernel_size=3, stride=2)
    with pytest.raises(UserError, match="kernel_size must not be smaller than the stride"):
        Convolution((4, 4, 4), 1, 1, kernel_size=1, stride=2)


@pytest.mark.parametrize("architecture", ["vqgan", "medfusion"])
def test_a_frozen_autoencoder_can_be_exported(architecture):
    network = Autoencoder((16, 16, 8), channels=8, bottleneck=GaussianBottleneck(8),
                          latent_normalization="standardize", architecture=architecture)  # fmt: skip
    x = torch.randn(1, 1, 16, 16, 8)
    exported = torch.export.export(network.eval().requires_grad_(False), (x,)).module()
    torch.testing.assert_close(exported(x), network(x), atol=1e-4, rtol=1e-4)
