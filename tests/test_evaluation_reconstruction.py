from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.reconstruction import (
    ReconstructionScore,
    mean_squared_error,
    psnr,
    reconstruction_metrics,
    summarise,
    trilinear_baseline,
)
from medical_diffusion.evaluation.spectrum import high_frequency_ratio
from medical_diffusion.losses.perceptual import lpips_of_volumes


def test_metrics_of_a_known_error() -> None:
    target = torch.rand(3, 1, 12, 12, 6) * 2 - 1
    offset = torch.tensor([0.1, 0.2, 0.0]).view(3, 1, 1, 1, 1)
    metrics = reconstruction_metrics(target + offset, target)
    assert metrics["mse"].tolist() == pytest.approx([0.01, 0.04, 0.0], rel=1e-4, abs=1e-9)
    assert metrics["psnr"][:2].tolist() == pytest.approx([26.0206, 20.0], rel=1e-4)
    assert metrics["psnr"][2] == math.inf
    assert metrics["ms_ssim"][0] > metrics["ms_ssim"][1]
    assert metrics["ms_ssim"][2] == pytest.approx(1)


def test_errors_are_means_in_double_precision() -> None:
    x, y = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8)
    error = ((x.double() - y.double()) ** 2).mean((1, 2, 3, 4))
    torch.testing.assert_close(mean_squared_error(x, y), error, rtol=1e-14, atol=0)
    torch.testing.assert_close(psnr(x, y, 2.0), 10 * torch.log10(4 / error), rtol=1e-14, atol=0)


def test_psnr_is_the_same_in_every_unit() -> None:
    x, y = torch.rand(2, 1, 4, 4, 1), torch.rand(2, 1, 4, 4, 1)
    torch.testing.assert_close(psnr(x, y, 1), psnr(x * 4000 - 1000, y * 4000 - 1000, 4000), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16, 8), (16, 12, 1), (15, 9, 7), (2, 2, 2)])
def test_baseline_keeps_shape_and_smooth_content(size: tuple[int, ...]) -> None:
    constant = torch.full((1, 2, *size), 0.3)
    torch.testing.assert_close(trilinear_baseline(constant, (4, 4, 4)), constant)
    noise = torch.randn(1, 1, *size)
    result = trilinear_baseline(noise, (4, 4, 4))
    assert result.shape == noise.shape
    assert result.std() < noise.std()
    assert torch.equal(trilinear_baseline(noise, (1, 1, 1)), noise)


def test_score_gathers_batches_and_compares_with_the_baseline() -> None:
    torch.manual_seed(0)
    score = ReconstructionScore((2, 2, 2))
    target = torch.rand(3, 1, 12, 12, 6) * 2 - 1
    close = target + 0.01 * torch.randn_like(target)
    score.update(close[:2], target[:2])
    score.update(close[2:], target[2:])
    summary = score.summary()
    expected = summarise(reconstruction_metrics(close, target)["psnr"])
    assert summary["psnr"].mean == pytest.approx(expected.mean)
    assert summary["psnr"].std == pytest.approx(expected.std)
    assert summary["psnr"].count == 3
    assert summary["psnr_gain"].mean == pytest.approx(summary["psnr"].mean - summary["baseline_psnr"].mean)
    assert summary["psnr_gain"].mean > 20
    assert str(summarise([1.0, 3.0])) == "2 ± 1.4"
    assert str(summarise([1.0])) == "1"


@pytest.mark.parametrize("size", [(12, 12, 6), (16, 16, 1)])
def test_sharpness_is_the_ratio_of_high_frequency_energy_over_all_batches(size: tuple[int, ...]) -> None:
    target = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(0)) - 0.5
    target[0] *= 0.1  # a volume with little detail: the ratio is of the sums, not a mean of ratios
    volumes = target * torch.tensor([2.0, 0.5, 0.5]).view(3, 1, 1, 1, 1)
    score = ReconstructionScore((2, 2, 2))
    score.update(volumes[:2], target[:2])
    score.update(volumes[2:], target[2:])
    summary = score.summary()
    sharpness = summary["high_frequency_ratio"]
    assert sharpness.mean == pytest.approx(high_frequency_ratio(volumes, target), rel=1e-5)
    assert sharpness.mean < 0.3 and str(sharpness) == f"{sharpness.mean:.4g}"
    baseline = high_frequency_ratio(trilinear_baseline(target, (2, 2, 2)), target)
    assert summary["baseline_high_frequency_ratio"].mean == pytest.approx(baseline, rel=1e-5)


def test_volumes_without_detail_have_no_sharpness() -> None:
    score = ReconstructionScore((2, 2, 2))
    score.update(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8))
    assert "high_frequency_ratio" not in score.summary()


def plane_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Stands for LPIPS: two batches of colour planes to (N, 1, 1, 1)."""
    return (x - y).abs().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("size", [(16, 20, 1), (17, 16, 5), (16, 16, 40)])
def test_lpips_is_the_mean_over_slices_of_each_volume(size: tuple[int, ...]) -> None:
    target = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    offset = torch.tensor([0.0, 0.1, 0.3]).view(3, 1, 1, 1, 1)
    found = lpips_of_volumes(plane_distance, target + offset, target)
    torch.testing.assert_close(found, offset.flatten(), atol=1e-5, rtol=0)
    torch.testing.assert_close(lpips_of_volumes(plane_distance, (target + offset)[1:2], target[1:2]), found[1:2])
    score = ReconstructionScore((2, 2, 1), lpips=partial(lpips_of_volumes, plane_distance))
    score.update(target + offset, target)
    assert score.summary()["lpips"].mean == pytest.approx(0.4 / 3, abs=1e-5)
    assert score.summary()["baseline_lpips"].mean > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarise([]), "needs at least one volume"),
        (lambda: ReconstructionScore((2, 2, 2)).summary(), "needs at least one volume"),
        (lambda: reconstruction_metrics(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 2)), "of the same shape"),
    ],
)
def test_bad_calls_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
