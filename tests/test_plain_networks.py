"""The plainly written networks of the benchmarks are the package's networks: same parameters, same results."""

from __future__ import annotations

import pytest
import torch
from plain_networks import PlainAutoencoder, PlainDiscriminator, PlainStep, PlainUNet, copy_weights
from torch import nn

from medical_diffusion.networks import Autoencoder, PatchDiscriminator, VectorQuantizer
from medical_diffusion.networks.unet import UNet

CODES = 64


def drawn(network: nn.Module) -> nn.Module:
    """The network with no weight left at zero, ready for evaluation."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network.eval()


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_unets_are_equal() -> None:
    torch.manual_seed(0)
    ours = drawn(UNet(4, width=16, spatial_attention="linear", depth_embedding=False))
    plain = PlainUNet(4, width=16)
    copy_weights(ours, plain)
    assert parameters(plain) == parameters(ours)
    x, timesteps = torch.randn(2, 4, 24, 16, 5), torch.tensor([3, 250])
    with torch.no_grad():
        expected = ours(x, timesteps)
        result = plain(x.movedim(-1, 2).contiguous(), timesteps).movedim(2, -1)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("compression", [2, 4])
def test_the_autoencoders_are_equal(compression: int) -> None:
    torch.manual_seed(0)
    size = (16, 24, 8)
    ours = drawn(Autoencoder(size, compression=compression, bottleneck=VectorQuantizer(CODES, 8)))
    ours.bottleneck.codebook.normal_(std=0.3)
    ours.bottleneck.codes_initialised.fill_(CODES)
    plain = PlainAutoencoder(compression, CODES).eval()
    copy_weights(ours, plain)
    assert parameters(plain) == parameters(ours)
    images = torch.rand(2, 1, *size) * 2 - 1
    with torch.no_grad():
        (expected,), bottleneck = ours.reconstruct(images)
        result, commitment = plain(images)
    assert len(bottleneck.indices.unique()) > 10
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(commitment, bottleneck.loss)


@pytest.mark.parametrize("size", [(32, 32, 32), (32, 32, 1)])
def test_the_discriminators_are_equal(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    ours, plain = drawn(PatchDiscriminator(size, channels=8)), PlainDiscriminator(size, channels=8)
    copy_weights(ours, plain)
    assert parameters(plain) == parameters(ours)
    images = torch.randn(2, 1, *size)
    with torch.no_grad():
        for expected, result in zip(ours(images), plain(images.squeeze(-1)), strict=True):
            torch.testing.assert_close(result, expected.reshape(result.shape), atol=1e-4, rtol=1e-4)


def test_a_step_trains_every_network_and_keeps_the_codebook_alive() -> None:
    torch.manual_seed(0)
    size = (16, 16, 16)
    slices, volumes = PlainDiscriminator((16, 16, 1), channels=8), PlainDiscriminator(size, channels=8)
    step = PlainStep(PlainAutoencoder(2, CODES), slices, volumes)
    networks = [step.autoencoder, *step.discriminators]
    before = [[p.clone() for p in network.parameters()] for network in networks]
    images = torch.rand(2, 1, *size) * 2 - 1
    step(images)
    for network, old in zip(networks, before, strict=True):
        # the last bias of a discriminator stays while no logit leaves [-1, 1]: real and fake draw it apart equally
        for a, b in list(zip(network.parameters(), old, strict=True))[:-1]:
            assert not torch.equal(a, b)
    assert step.autoencoder.bottleneck.codebook.isfinite().all()
    # each forward pass in training mode adds its tokens: two passes a step
    tokens, decay = 2 * 8**3, 0.99
    expected = CODES * decay**2 + tokens * (1 - decay**2)
    torch.testing.assert_close(step.autoencoder.bottleneck.ema_counts.sum(), torch.tensor(expected))
