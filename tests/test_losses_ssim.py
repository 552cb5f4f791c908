"""SSIM and MS-SSIM: against other implementations, on any size, and as a loss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.losses import StructuralLoss, ms_ssim, ssim
from medical_diffusion.losses.ssim import scale_strides


def pair(*shape: int, noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator) * 2 - 1
    return x, (x + noise * torch.randn(shape, generator=generator)).clamp(-1, 1)


def test_equals_a_direct_evaluation_of_the_formula() -> None:
    """Every window by hand, with scipy's correlation in double precision."""
    from scipy.ndimage import correlate1d

    x, y = (t[0, 0].double().numpy() for t in pair(1, 1, 14, 13, 12))
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()

    def mean(image: np.ndarray) -> np.ndarray:
        for axis in range(3):
            image = correlate1d(image, window, axis=axis)
        return image[5:-5, 5:-5, 5:-5]

    c1, c2 = 0.02**2, 0.06**2
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    ours = ssim(torch.tensor(x)[None, None], torch.tensor(y)[None, None], data_range=2)
    assert ours.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(2, 1, 24, 20, 28), (2, 3, 32, 16, 12)])
def test_equals_monai_where_monai_works(shape: tuple[int, ...]) -> None:
    from monai.metrics import SSIMMetric

    x, y = pair(*shape)
    theirs = SSIMMetric(spatial_dims=3, data_range=2.0)(x, y)[:, 0]
    torch.testing.assert_close(ssim(x, y, data_range=2), theirs, rtol=1e-3, atol=1e-4)


def test_equals_monai_at_all_scales_and_goes_on_where_monai_refuses() -> None:
    from monai.metrics import MultiScaleSSIMMetric

    theirs = MultiScaleSSIMMetric(spatial_dims=2, data_range=2.0)
    x, y = pair(1, 1, 176, 190)
    torch.testing.assert_close(ms_ssim(x, y, 2), theirs(x, y)[:, 0], rtol=1e-3, atol=1e-4)
    x, y = pair(1, 1, 175, 190)
    with pytest.raises(ValueError, match="image height must be larger"):
        theirs(x, y)
    assert 0 < ms_ssim(x, y, 2) < 1


def test_equals_monai_at_several_scales() -> None:
    from monai.metrics import MultiScaleSSIMMetric

    x, y = pair(2, 1, 96, 88, noise=0.5)
    weights = (0.0448, 0.2856, 0.3001)
    theirs = MultiScaleSSIMMetric(spatial_dims=2, data_range=2.0, weights=weights)(x, y)[:, 0]
    scaled = theirs ** (1 / sum(weights))  # ours has weights of sum 1
    torch.testing.assert_close(ms_ssim(x, y, 2, scale_weights=weights), scaled, rtol=1e-3, atol=1e-4)


def test_depth_one_is_the_image() -> None:
    x, y = pair(2, 1, 40, 30, 1)
    for metric in (ssim, ms_ssim):
        torch.testing.assert_close(metric(x, y, 2), metric(x[..., 0], y[..., 0], 2))
        torch.testing.assert_close(metric(x, y, 2), metric(x.movedim(4, 2), y.movedim(4, 2), 2))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 2, 3, 2), (3, 4, 5), (7, 64, 1), (17, 9, 33), (64,), (5, 30)])
def test_any_size_gives_one_number_per_sample(shape: tuple[int, ...]) -> None:
    x, y = pair(2, 3, *shape)
    for metric in (ssim, ms_ssim):
        result = metric(x, y, 2)
        assert result.shape == (2,)
        assert (result < 1).all()
        torch.testing.assert_close(metric(x, x, 2), torch.ones(2))


def test_more_noise_is_less_similar_and_samples_are_separate() -> None:
    x, y = pair(1, 1, 32, 32, 8)
    _, z = pair(1, 1, 32, 32, 8, noise=0.6)
    for metric in (ssim, ms_ssim):
        both = metric(torch.cat([x, x]), torch.cat([y, z]), 2)
        assert both[0] > both[1]
        torch.testing.assert_close(both[0], metric(x, y, 2)[0])


def test_data_range_scales_with_the_image() -> None:
    x, y = pair(1, 1, 24, 24, 24)
    torch.testing.assert_close(ssim(x, y, 2), ssim(x * 1000, y * 1000, 2000), rtol=1e-3, atol=1e-5)


def test_scales_follow_from_the_size_of_each_axis() -> None:
    assert scale_strides((256, 256, 32), 11, 5) == [(2, 2, 1 + 1), (2, 2, 1), (2, 2, 1), (2, 2, 1)]
    assert scale_strides((32, 32, 32), 11, 5) == [(2, 2, 2)]
    assert scale_strides((64, 64, 1), 11, 5) == [(2, 2, 1), (2, 2, 1)]
    assert scale_strides((16, 16, 16), 11, 5) == []


@pytest.mark.parametrize(("kind", "largest"), [("ms_ssim", 1), ("ssim", 2)])
def test_loss_has_finite_gradients_everywhere(kind: Literal["ms_ssim", "ssim"], largest: float) -> None:
    loss = StructuralLoss(kind, data_range=2.0)
    for shape in ((2, 1, 32, 32, 32), (2, 1, 33, 24, 1), (1, 1, 4, 4, 4), (2, 3, 2, 3, 1), (1, 1, 1, 1, 1)):
        x, y = pair(*shape)
        for reconstruction in (y, x, -x, torch.zeros_like(x), torch.full_like(x, 0.7)):
            reconstruction = reconstruction.clone().requires_grad_()
            value = loss(reconstruction, x)
            value.backward()
            assert value.isfinite()
            assert reconstruction.grad.isfinite().all()
            assert -1e-5 <= value <= largest


def test_the_kind_of_the_loss_is_the_metric() -> None:
    x, y = pair(3, 2, 40, 30, 1)
    torch.testing.assert_close(StructuralLoss("ssim")(y, x), 1 - ssim(x, y, 2).mean())
    torch.testing.assert_close(StructuralLoss()(y, x), 1 - ms_ssim(x, y, 2).mean())
    assert not torch.allclose(StructuralLoss("ssim")(y, x), StructuralLoss("ms_ssim")(y, x))
    with pytest.raises(UserError, match=r"kind must be ms_ssim or ssim.*Did you mean"):
        StructuralLoss("msssim")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["ms_ssim", "ssim"])
def test_descending_the_loss_restores_the_image(kind: Literal["ms_ssim", "ssim"]) -> None:
    x, y = pair(1, 1, 24, 24, 4, noise=0.5)
    loss, y = StructuralLoss(kind, data_range=2.0), y.requires_grad_()
    before = loss(y, x).item()
    optimizer = torch.optim.Adam([y], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss(y, x).backward()
        optimizer.step()
    assert loss(y, x).item() < before / 4


def test_half_precision_and_autocast_are_computed_in_float32() -> None:
    x, y = pair(1, 1, 24, 24, 24)
    x, y = x.bfloat16(), y.bfloat16()
    exact = ms_ssim(x.float(), y.float(), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ms_ssim(x, y, 2), exact)


def test_channels_last_makes_no_difference() -> None:
    x, y = pair(2, 2, 16, 14, 12)
    last = torch.channels_last_3d
    torch.testing.assert_close(ssim(x, y, 2), ssim(x.to(memory_format=last), y.to(memory_format=last), 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ssim(x, x[..., :3], 2), "two images of the same shape are needed"),
        (lambda x: ssim(x, x, 0), "data_range must be positive.*0.*Images in"),
        (lambda x: ms_ssim(x, x, 2, window_size=4), "window_size must be odd and positive.*4"),
        (lambda x: ssim(x[0, 0, 0], x[0, 0, 0], 2), "at least one spatial axis"),
    ],
)
def test_bad_calls_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(torch.zeros(1, 1, 4, 4))
