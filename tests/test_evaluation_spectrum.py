from __future__ import annotations

import pytest
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.spectrum import high_frequency_energy, high_frequency_ratio, radial_power_spectrum

SIZES = [(32, 32, 32), (33, 20, 6), (64, 48, 1), (1, 64, 1), (16, 16, 2)]


@pytest.mark.parametrize("size", SIZES)
def test_white_noise_is_flat_and_as_strong_as_its_variance(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    noise = 3 * torch.randn(400 if max(size) > 60 and size[0] == 1 else 20, 1, *size)
    frequencies, power = radial_power_spectrum(noise)
    assert frequencies.shape == power.shape[1:] == (max(size) // 2 + 1,)
    assert frequencies[-1] == pytest.approx(1, abs=1 / max(size))
    assert power.isfinite().all()
    # the lowest shells lose the mean that is subtracted
    assert power[:, 2:].mean().item() == pytest.approx(9, rel=0.1)


@pytest.mark.parametrize("cycles", [2, 4, 8, 14])
def test_a_wave_shows_up_at_its_frequency(cycles: int) -> None:
    wave = torch.sin(2 * torch.pi * cycles * torch.arange(32) / 32).view(1, 1, 32, 1, 1).expand(1, 1, 32, 24, 8)
    frequencies, power = radial_power_spectrum(wave)
    assert frequencies[power[0].argmax()] == pytest.approx(cycles / 16)


def test_spacing_gives_cycles_per_mm() -> None:
    # period 4 mm along a fine axis, on anisotropic voxels
    wave = torch.sin(2 * torch.pi * torch.arange(64) * 0.5 / 4).view(1, 1, 64, 1, 1).expand(1, 1, 64, 48, 10)
    frequencies, power = radial_power_spectrum(wave, spacing=(0.5, 0.6, 3.0))
    assert frequencies[-1] == pytest.approx(1.0)
    assert frequencies[power[0].argmax()] == pytest.approx(0.25)
    assert power.isfinite().all()


def test_high_frequency_energy_is_the_variance_above_half_nyquist() -> None:
    slow = torch.sin(2 * torch.pi * 4 * torch.arange(64) / 64)
    fast = torch.sin(2 * torch.pi * 24 * torch.arange(64) / 64)
    volume = (slow + 0.1 * fast).view(1, 1, 64, 1, 1).expand(1, 1, 64, 8, 1)
    assert high_frequency_energy(volume).item() == pytest.approx(0.01 / 2, rel=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_blur_lowers_the_ratio_and_noise_raises_it(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    real = torch.randn(40, 1, *size)
    assert high_frequency_ratio(torch.randn(40, 1, *size), real) == pytest.approx(1, abs=0.2)
    assert high_frequency_ratio(0.5 * real, real) == pytest.approx(0.25)
    axis = 2 + max(range(3), key=lambda a: size[a])
    blurred = (real + real.roll(1, axis)) / 2
    assert high_frequency_ratio(blurred, real) < 0.7
    assert high_frequency_ratio(real + torch.randn_like(real), real) > 1.5


def test_jumps_between_opposite_faces_are_not_detail() -> None:
    ramp = torch.linspace(-1, 1, 64).view(1, 1, 64, 1, 1).expand(1, 1, 64, 64, 1)
    assert high_frequency_energy(ramp).item() < 1e-6


def test_half_precision_and_channels() -> None:
    x = torch.randn(2, 3, 8, 8, 4)
    torch.testing.assert_close(high_frequency_energy(x.bfloat16()), high_frequency_energy(x), rtol=0.05, atol=0.01)
    each = torch.stack([high_frequency_energy(x[:, [c]]) for c in range(3)]).mean(0)
    torch.testing.assert_close(high_frequency_energy(x), each)


def test_bad_calls_are_named() -> None:
    with pytest.raises(UserError, match="with more than one voxel"):
        high_frequency_energy(torch.zeros(1, 1, 1, 1, 1))
    with pytest.raises(UserError, match=r"spacing must be 3 positive numbers in mm.*\(1, 1, 0\)"):
        radial_power_spectrum(torch.zeros(1, 1, 4, 4, 4), (1, 1, 0))


def test_classes_are_compared_each_with_its_own_whatever_their_shares() -> None:
    torch.manual_seed(0)
    sharp, blurred = torch.randn(30, 1, 16, 16, 1), 0.2 * torch.randn(30, 1, 16, 16, 1)
    real, real_labels = torch.cat([sharp, blurred]), [0] * 30 + [1] * 30
    mostly_blurred, labels = torch.cat([sharp[:5], blurred]), [0] * 5 + [1] * 30
    assert high_frequency_ratio(mostly_blurred, real) < 0.5
    by_class = high_frequency_ratio(mostly_blurred, real, labels=labels, real_labels=real_labels)
    assert by_class == pytest.approx(1, abs=0.15)
    halved = high_frequency_ratio(mostly_blurred / 2, real, labels=labels, real_labels=real_labels)
    assert halved == pytest.approx(by_class / 4)


def test_labels_of_one_side_or_of_a_class_without_real_volumes_are_refused() -> None:
    volumes = torch.randn(2, 1, 8, 8, 1)
    with pytest.raises(UserError, match="given together"):
        high_frequency_ratio(volumes, volumes, labels=[0, 0])
    with pytest.raises(UserError, match=r"needs real ones.*none of class 1"):
        high_frequency_ratio(volumes, volumes, labels=[0, 1], real_labels=[0, 0])
