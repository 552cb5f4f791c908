"""Depth 1 is the 2D network: equal outputs and gradients with the same weights."""

from __future__ import annotations

import pytest
import torch
from reference_2d import Autoencoder2d, UNet2d, copy_weights
from torch import nn

from medical_diffusion.networks import Autoencoder, GaussianBottleneck, UNet


def squeezed_gradients(module: nn.Module) -> list[torch.Tensor]:
    gradients = [p.grad for p in module.parameters()]
    return [g.squeeze(-1) if g.dim() == 5 else g for g in gradients]


@pytest.mark.parametrize("padding_mode", ["replicate", "zeros"])
@pytest.mark.parametrize(("size", "in_channels"), [((32, 24), 1), ((16, 16), 3)])
def test_the_autoencoder_is_the_2d_one(size: tuple[int, int], in_channels: int, padding_mode: str) -> None:
    ours = Autoencoder(
        (*size, 1), in_channels, channels=16, compression=8, latent_channels=4, bottleneck=GaussianBottleneck(4),
        latent_normalization="standardize", padding_mode=padding_mode, architecture="medfusion", deep_supervision=True,
    ).eval()  # fmt: skip
    theirs = Autoencoder2d(in_channels, 16, 3, 4, padding_mode="replicate" if padding_mode == "replicate" else "zeros")
    copy_weights(ours, theirs)
    x = torch.randn(2, in_channels, *size)
    full, half, moments = theirs(x)
    (our_full, our_half), bottleneck = ours.reconstruct(x[..., None])
    torch.testing.assert_close(ours.moments(x[..., None])[..., 0], moments, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bottleneck.latents[..., 0], moments[:, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_full[..., 0], full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_half[..., 0], half, atol=1e-5, rtol=1e-5)
    assert full.std() > 0.01

    (our_full.square().mean() + our_half.square().mean()).backward()
    (full.square().mean() + half.square().mean()).backward()
    for g, h in zip(squeezed_gradients(ours), squeezed_gradients(theirs), strict=True):
        torch.testing.assert_close(g, h, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_the_unet_is_the_2d_one(size: tuple[int, int]) -> None:
    ours = UNet(
        4, width=16, channel_multipliers=(1, 1, 2, 4), blocks_per_level=1, skip="add", spatial_attention="none",
        depth_attention=False, num_classes=2,
    )  # fmt: skip
    for parameter in ours.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    theirs = UNet2d(4, 16, (1, 1, 2, 4), 2)
    copy_weights(ours, theirs)
    x, timesteps, labels = torch.randn(3, 4, *size), torch.tensor([0, 17, 999]), torch.tensor([0, 1, 2])
    expected = theirs(x, timesteps, labels)
    assert expected.std() > 0.1
    y = ours(x[..., None], timesteps, labels)
    torch.testing.assert_close(y[..., 0], expected, atol=1e-5, rtol=1e-5)
    y.square().mean().backward()
    expected.square().mean().backward()
    for g, h in zip(squeezed_gradients(ours), squeezed_gradients(theirs), strict=True):
        torch.testing.assert_close(g, h, atol=1e-5, rtol=1e-3)
