"""Spectral, adversarial and perceptual terms."""

from __future__ import annotations

import itertools
import sys
import types

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.losses import (
    PerceptualLoss,
    SpectralLoss,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from medical_diffusion.losses.perceptual import VGG_FILE, _slices, load_lpips


def log_amplitude_distance(a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    return (0.5 * torch.log(a + epsilon**2) - 0.5 * torch.log(b + epsilon**2)).abs()


@pytest.mark.parametrize("shape", [(2, 1, 8, 6, 5), (1, 2, 7, 8, 1), (1, 1, 1, 9, 4), (2, 1, 12)])
def test_spectral_loss_is_the_mean_over_the_whole_spectrum_and_over_its_bands(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    axes = [axis for axis in range(2, len(shape)) if shape[axis] > 1]
    full = [torch.fft.fftn(t.double(), dim=axes, norm="ortho").abs() ** 2 for t in (x, y)]
    bands: list[list[Tensor]] = [[], []]
    half = [n // 2 + 1 if axis == axes[-1] else n for axis, n in enumerate(shape)]
    for corner in itertools.product(*(range(0, n, 4) for n in half[2:])):
        block = tuple(slice(c, min(c + 4, n)) for c, n in zip(corner, half[2:], strict=True))
        for found, power in zip(bands, full, strict=True):
            found.append(power[(slice(None), slice(None), *block)].flatten(2).mean(2))
    single = log_amplitude_distance(*full, 0.01).mean()
    banded = log_amplitude_distance(*(torch.stack(found) for found in bands), 0.01).mean()
    torch.testing.assert_close(SpectralLoss(0.01)(x, y).double(), (single + banded) / 2, rtol=1e-4, atol=1e-5)


def test_spectral_loss_asks_for_all_the_power_of_unpredictable_texture() -> None:
    torch.manual_seed(0)
    textures, guess = torch.randn(64, 1, 32, 32, 1), torch.randn(1, 1, 32, 32, 1)
    flat = torch.fft.ifftn(torch.polar(torch.ones(32, 32), torch.fft.fftn(guess[0, 0, ..., 0]).angle())).real * 32
    gains = torch.linspace(0.5, 1.5, 41)
    losses = [SpectralLoss()((g * flat).view(1, 1, 32, 32, 1).expand_as(textures), textures) for g in gains]
    assert gains[torch.stack(losses).argmin()] == pytest.approx(1, abs=0.08)


def test_spectral_loss_sees_missing_detail_better_than_l1() -> None:
    torch.manual_seed(0)
    smooth = torch.cumsum(torch.cumsum(torch.randn(1, 1, 32, 32, 8), 2), 3) / 20
    detail = 0.05 * torch.randn_like(smooth)
    dimmed, blurred = smooth * 0.94 + detail, smooth
    target = smooth + detail
    assert (dimmed - target).abs().mean() > (blurred - target).abs().mean()
    loss = SpectralLoss()
    assert loss(blurred, target) > 5 * loss(dimmed, target)


def test_spectral_loss_ignores_phase_and_has_finite_gradients() -> None:
    x = torch.randn(1, 1, 8, 8, 4)
    assert SpectralLoss()(x.roll((2, 3, 1), (2, 3, 4)), x) < 1e-3
    for start in (torch.zeros_like(x), torch.ones_like(x), x.clone()):
        start.requires_grad_()
        SpectralLoss()(start, x).backward()
        assert start.grad.isfinite().all()


def test_spectral_loss_of_half_precision_and_of_points() -> None:
    x = torch.randn(1, 1, 7, 6, 1).bfloat16()
    assert SpectralLoss()(x, x).dtype == torch.float32
    assert SpectralLoss()(torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)) == 1


def test_hinge_losses_are_the_standard_ones() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert hinge_generator_loss(fake) == pytest.approx(1 / 3)
    zero = torch.zeros(4)
    assert hinge_discriminator_loss(zero, zero) == 2


def test_feature_matching_pulls_only_the_reconstruction() -> None:
    real = [torch.ones(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    fake = [torch.zeros(2, 3, requires_grad=True), torch.full((4,), 3.0, requires_grad=True)]
    loss = feature_matching_loss(real, fake)
    assert loss == 2
    loss.backward()
    assert all(r.grad is None for r in real)
    assert all(f.grad.abs().sum() > 0 for f in fake)


class LPIPSOfTheSameShape(nn.Module):
    """Stands for lpips.LPIPS where the extra is not installed: its module names, its call, no meaning."""

    def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"
        assert pnet_rand, "without it lpips downloads"
        self.net = nn.ModuleDict({"slice1": nn.ModuleDict({"0": nn.Conv2d(3, 2, 3)})})
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 16, 17)
        features = [self.drop(self.net["slice1"]["0"](image)) for image in (x, y)]
        return (features[0] - features[1]).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def fake_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lpips")
    module.LPIPS = LPIPSOfTheSameShape
    monkeypatch.setitem(sys.modules, "lpips", module)


def test_perceptual_loss_loads_a_local_file(fake_lpips: None, tmp_path) -> None:
    weights = {
        "features.0.weight": torch.randn(2, 3, 3, 3),
        "features.0.bias": torch.randn(2),
        "classifier": torch.ones(1),
    }
    torch.save(weights, tmp_path / VGG_FILE)
    loss = PerceptualLoss(tmp_path / VGG_FILE).train()
    assert torch.equal(loss.network.net["slice1"]["0"].weight, weights["features.0.weight"])
    assert not any(p.requires_grad for p in loss.parameters())
    assert not loss.network.training
    x, y = torch.randn(2, 2, 16, 17, 5), torch.randn(2, 2, 16, 17, 5, requires_grad=True)
    assert loss(x, x) == 0
    loss(y, x).backward()
    # one slice of each sample
    assert (y.grad.abs().amax((1, 2, 3)) > 0).sum(1).tolist() == [1, 1]
    with pytest.raises(UserError, match=r"slices of at least 16 x 16 pixels.*\(8, 17\)"):
        loss(torch.zeros(1, 1, 8, 17, 1), torch.zeros(1, 1, 8, 17, 1))
    with pytest.raises(UserError, match="of the same shape are needed"):
        loss(torch.zeros(1, 1, 16, 17, 1), torch.zeros(1, 1, 16, 17, 2))


def test_both_volumes_are_cut_at_the_same_slice() -> None:
    volume = torch.arange(6.0).expand(2, 1, 16, 16, 6)
    cut = _slices(volume, torch.tensor([4, 1]))
    assert cut.shape == (2, 3, 16, 16)
    assert cut[0].unique().tolist() == [4]
    assert cut[1].unique().tolist() == [1]


def test_perceptual_loss_without_its_file_or_network(
    fake_lpips: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"file of the VGG-16 weights \(vgg16-397923af.pth\) must exist.*none"):
        load_lpips(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="must be a readable weights file"):
        load_lpips(tmp_path / "text.pth")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"must hold torchvision's VGG-16 weights.*features.0.\w+ is missing"):
        load_lpips(tmp_path / "other.pth")

    def offline(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(
        UserError, match=r"vgg16-397923af.pth.*could not be downloaded.*unreachable.*perceptual to none"
    ):
        load_lpips()


def test_perceptual_loss_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"needs the packages lpips and torchvision.*medical_diffusion\[perceptual\]"):
        PerceptualLoss()


def test_perceptual_loss_with_the_real_network(tmp_path) -> None:
    """The names of the real library's weights, with random values: no download."""
    pytest.importorskip("lpips", reason="the extra 'perceptual' is not installed", exc_type=ImportError)
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), tmp_path / VGG_FILE)
    loss = PerceptualLoss(tmp_path / VGG_FILE)
    x = torch.rand(1, 1, 32, 32, 3) * 2 - 1
    assert loss(x, x).item() == pytest.approx(0, abs=1e-6)
    assert loss(-x, x) > 0
