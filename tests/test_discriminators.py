"""Patch discriminator: sizes from volumes to small images, memory format, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.networks import PatchDiscriminator, conv
from medical_diffusion.networks.conv import Convolution, channels_last
from medical_diffusion.networks.matrix_conv import matrix_conv


def test_layers_are_the_papers() -> None:
    discriminator = PatchDiscriminator(64)
    convolutions = [m for m in discriminator.modules() if isinstance(m, Convolution)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2, 2, 2, 1, 1]
    assert all(c.kernel_size == (4, 4, 4) for c in convolutions)
    assert discriminator.out_size == (6, 6, 6)


@pytest.mark.parametrize("norm", ["group", "instance", "batch", "none"])
@pytest.mark.parametrize("image_size", [(32, 32, 32), (16, 16, 1), (8, 8, 8), (20, 13, 5), (32, 1, 16), (3, 2, 1)])
def test_maps_never_vanish_and_keep_their_layout(image_size: tuple[int, int, int], norm: str) -> None:
    discriminator = PatchDiscriminator(image_size, channels=4, norm=norm)  # type: ignore[arg-type]

    def check(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.is_contiguous(memory_format=torch.channels_last_3d), module
        assert output.shape[1] == 1 or output.stride(1) == 1, module

    for module in discriminator.layers.modules():
        if not isinstance(module, nn.ModuleList):
            module.register_forward_hook(check)
    maps = discriminator(torch.randn(2, 1, *image_size))
    assert maps[-1].shape == (2, 1, *discriminator.out_size)
    assert [m.shape[1] for m in maps] == [4, 8, 16, 32, 1]
    sum(m.square().mean() for m in maps).backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_small_axis_is_not_halved() -> None:
    strides = [m.stride for m in PatchDiscriminator((32, 32, 4)).modules() if isinstance(m, Convolution)]
    assert strides == [(2, 2, 1), (2, 2, 1), (2, 2, 1), (1, 1, 1), (1, 1, 1)]


def test_a_slice_runs_the_same_weights_in_2d() -> None:
    discriminator = PatchDiscriminator((16, 16, 1), channels=8, norm="none")
    x = torch.randn(2, 1, 16, 16, 1)
    h = x.squeeze(-1)
    for layer in [m for m in discriminator.modules() if isinstance(m, Convolution)]:
        h = nn.functional.conv2d(h, layer.weight[..., 0], layer.bias, layer.stride[0], 1)
        h = nn.functional.leaky_relu(h, 0.2) if layer.out_channels > 1 else h
    torch.testing.assert_close(discriminator(x)[-1].squeeze(-1), h, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [((5, 4, 3), (1, 2, 1)), ((6, 5), (2, 1))])
def test_a_convolution_as_matrix_product_is_a_convolution(size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    convolve = nn.functional.conv3d if len(size) == 3 else nn.functional.conv2d
    x = channels_last(torch.randn(2, 3, *size)).requires_grad_()
    weight = channels_last(torch.randn(5, 3, *(3,) * len(size))).requires_grad_()
    bias, border = torch.randn(5, requires_grad=True), (1,) * len(size)
    plain = convolve(x, weight, bias, stride, border)
    matrix = matrix_conv(x, weight, bias, stride, border, plain.shape[2:])
    torch.testing.assert_close(matrix, plain, atol=1e-5, rtol=1e-5)
    leaves, cotangent = (x, weight, bias), torch.randn_like(plain)
    gradients = torch.autograd.grad(matrix, leaves, cotangent)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, leaves, cotangent), atol=1e-4, rtol=1e-4)


def test_layers_of_many_weights_and_few_voxels_become_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    discriminator, x, calls = PatchDiscriminator(16), torch.randn(1, 1, 16, 16, 16), []

    def counted(*args: object) -> Tensor:
        calls.append(args)
        return matrix_conv(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(conv, "matrix_conv", counted)
    fast = discriminator(x)[-1]
    assert len(calls) >= 2
    monkeypatch.setattr(conv, "prefers_matrix", lambda *args: False)
    torch.testing.assert_close(fast, discriminator(x)[-1], atol=1e-4, rtol=1e-4)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    discriminator = PatchDiscriminator(16, channels=8)
    x = torch.randn(3, 1, 16, 16, 16)
    torch.testing.assert_close(discriminator(x)[-1][1:2], discriminator(x[1:2])[-1], atol=1e-5, rtol=1e-5)


def test_errors() -> None:
    with pytest.raises(UserError, match=r"norm must be known.*instance"):
        PatchDiscriminator(16, norm="instanc")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_layers must be at least 2"):
        PatchDiscriminator(16, num_layers=1)
    with pytest.raises(UserError, match=r"discriminator's image must be \(B, 1, 16, 16, 16\)"):
        PatchDiscriminator(16)(torch.randn(1, 1, 16, 16, 1))
