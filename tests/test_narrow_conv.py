"""The convolution to one channel against PyTorch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medical_diffusion.networks import conv
from medical_diffusion.networks.conv import Convolution, channels_last
from medical_diffusion.networks.narrow_conv import narrow_conv, prefers_narrow


@pytest.mark.parametrize("border", [(0, 0, 0), (1, 1, 1), (1, 0, 2)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 2), (4, 4, 4)])
@pytest.mark.parametrize("size", [(6, 5, 7), (4, 9, 4)])
def test_it_equals_the_plain_convolution(
    size: tuple[int, ...], kernel: tuple[int, ...], border: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 8, *size), torch.randn(1, 8, *kernel), torch.randn(1)]
    both = [[channels_last(t).detach().requires_grad_() if t.dim() > 1 else t.clone().requires_grad_() for t in tensors]
            for _ in range(2)]  # fmt: skip
    ours, plain = narrow_conv(*both[0], border), F.conv3d(*both[1], padding=border)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(plain)
    ours.backward(grad)
    plain.backward(grad)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


def test_the_layer_uses_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Convolution((6, 6, 6), 16, 1), torch.randn(1, 16, 6, 6, 6)
    ours = layer(x)
    assert prefers_narrow(x, layer.weight, (1, 1, 1))
    monkeypatch.setattr(conv, "prefers_narrow", lambda *arguments: False)
    torch.testing.assert_close(ours, layer(x), atol=1e-5, rtol=1e-5)
    assert not prefers_narrow(x, layer.weight.expand(2, -1, -1, -1, -1), (1, 1, 1))
    assert not prefers_narrow(x, layer.weight, (1, 2, 1))
    assert not prefers_narrow(x.bfloat16(), layer.weight, (1, 1, 1))
