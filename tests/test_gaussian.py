"""Gaussian bottleneck: its divergence, its draws, its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from medical_diffusion.errors import UserError
from medical_diffusion.networks import GaussianBottleneck


@pytest.mark.parametrize("shape", [(2, 4, 3, 5, 1), (1, 4, 4, 4, 2), (3, 4, 1, 1, 1)])
def test_the_loss_is_the_divergence_from_a_standard_normal(shape: tuple[int, ...]) -> None:
    bottleneck, h = GaussianBottleneck(2, kl_weight=0.1), torch.randn(shape)
    out = bottleneck(h)
    posterior = Normal(h[:, :2], (h[:, 2:] / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(out.statistics["kl"], expected)
    torch.testing.assert_close(out.loss, 0.1 * expected)
    assert out.latents.shape == (shape[0], 2, *shape[2:])
    assert out.indices is None
    standard = torch.zeros(shape)
    assert bottleneck(standard).loss == 0


def test_training_draws_and_evaluation_does_not() -> None:
    bottleneck = GaussianBottleneck(1)
    h = torch.cat([torch.full((1, 1, 64, 64, 8), 3.0), torch.full((1, 1, 64, 64, 8), 2 * torch.tensor(0.5).log())], 1)
    drawn = bottleneck.train()(h).latents
    assert drawn.mean().item() == pytest.approx(3, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(bottleneck(h).latents, drawn)
    torch.manual_seed(3)
    first = bottleneck(h).latents
    torch.manual_seed(3)
    assert torch.equal(bottleneck(h).latents, first)
    for latents in (bottleneck.eval()(h).latents, bottleneck.encode(h), bottleneck.train().encode(h)):
        assert torch.equal(latents, h[:, :1])
    assert bottleneck.to_decoder(drawn) is drawn


def test_mean_and_log_variance_get_a_gradient_from_the_decoder_and_from_the_divergence() -> None:
    for part in ("latents", "loss"):
        h = torch.randn(2, 4, 3, 3, 2, requires_grad=True)
        getattr(GaussianBottleneck(2)(h), part).square().sum().backward()
        assert h.grad is not None and (h.grad != 0).all()


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_extreme_log_variances_stay_finite(extreme: float) -> None:
    h = torch.full((1, 2, 2, 2, 1), extreme)
    h[:, :1] = 0
    h.requires_grad_()
    out = GaussianBottleneck(1)(h)
    (out.loss + out.latents.mean()).backward()
    assert out.loss.isfinite() and out.latents.isfinite().all()
    assert h.grad is not None and h.grad.isfinite().all()


def test_half_precision_keeps_its_type_and_a_float32_divergence() -> None:
    h = torch.randn(1, 4, 4, 4, 4)
    exact, coarse = GaussianBottleneck(2).eval()(h), GaussianBottleneck(2).eval()(h.bfloat16())
    assert coarse.latents.dtype == torch.bfloat16
    assert coarse.loss.dtype == torch.float32
    torch.testing.assert_close(coarse.statistics["kl"], exact.statistics["kl"], rtol=1e-2, atol=0)


def test_errors() -> None:
    with pytest.raises(UserError, match=r"latent_channels must be a positive whole number.*Received: 0"):
        GaussianBottleneck(0)
    with pytest.raises(UserError, match=r"kl_weight must not be negative"):
        GaussianBottleneck(8, kl_weight=-1)
    with pytest.raises(UserError, match=r"must be \(B, 16, h, w, d\).*\(1, 8, 2, 2, 2\)"):
        GaussianBottleneck(8)(torch.zeros(1, 8, 2, 2, 2))
