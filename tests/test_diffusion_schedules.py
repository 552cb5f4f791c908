"""Schedules, prediction targets and the precision of the tables."""

from __future__ import annotations

import copy

import pytest
import torch

from medical_diffusion.diffusion import DDIMSampler, DDPMSampler, create_sampler
from medical_diffusion.diffusion.prediction import (
    PREDICTION_TYPES,
    predicted_noise,
    predicted_x0,
    prediction_target,
)
from medical_diffusion.diffusion.schedules import SCHEDULES, schedule_betas
from medical_diffusion.errors import UserError


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 300, 1000])
def test_signal_to_noise_ratio_falls_from_clean_to_noise(schedule: str, steps: int) -> None:
    log_snr = DDPMSampler(steps, schedule).log_snr
    assert (log_snr.diff() < 0).all()
    assert log_snr[0] > 1
    # hardly any signal is left at the end whatever the number of timesteps
    assert log_snr[-1] < -3.5


def test_cosine_is_the_published_formula() -> None:
    alphas_cumprod = DDPMSampler(300, "cosine").alphas_cumprod.double()
    u = torch.arange(1, 301, dtype=torch.float64) / 300
    f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    expected = f / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2
    torch.testing.assert_close(alphas_cumprod[:-1], expected[:-1], rtol=1e-5, atol=1e-9)
    assert DDPMSampler(300, "cosine").betas.max() == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("schedule", "monai_name", "diffusers_name"),
    [("linear", "linear_beta", "linear"), ("scaled_linear", "scaled_linear_beta", "scaled_linear")],
)
def test_linear_schedules_equal_those_of_monai_and_diffusers(
    schedule: str, monai_name: str, diffusers_name: str
) -> None:
    from monai.networks.schedulers import DDPMScheduler

    options = {"beta_start": 0.002, "beta_end": 0.02}
    ours = DDPMSampler(1000, schedule, **options).alphas_cumprod
    torch.testing.assert_close(ours, DDPMScheduler(1000, monai_name, **options).alphas_cumprod, rtol=1e-4, atol=1e-7)
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule=diffusers_name, **options).alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1, 5, 4, 1), (2, 8, 4, 4, 3)])
def test_predictions_invert_the_targets(prediction_type: str, shape: tuple[int, ...]) -> None:
    sampler = DDPMSampler(prediction_type=prediction_type)
    torch.manual_seed(0)
    x0, noise = torch.randn(shape), torch.randn(shape)
    for t in (0, 1, 150, 290):
        timesteps = torch.full((2,), t)
        x_t = sampler.add_noise(x0, noise, timesteps)
        target = sampler.training_target(x0, noise, timesteps)
        a, s = sampler.sqrt_alphas_cumprod[t], sampler.sqrt_one_minus_alphas_cumprod[t]
        torch.testing.assert_close(predicted_x0(prediction_type, target, x_t, a, s), x0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predicted_noise(prediction_type, target, x_t, a, s), noise, rtol=1e-4, atol=1e-3)


def test_predictions_of_one_state_agree() -> None:
    torch.manual_seed(0)
    x0, noise, a, s = torch.randn(4), torch.randn(4), 0.6, 0.8
    x_t = a * x0 + s * noise
    v = prediction_target("v_prediction", x0, noise, a, s)
    torch.testing.assert_close(v, a * noise - s * x0)
    torch.testing.assert_close(a * x_t - s * v, x0)
    torch.testing.assert_close(s * x_t + a * v, noise)


def test_each_sample_gets_the_noise_of_its_own_timestep() -> None:
    sampler = DDPMSampler()
    x0, noise = torch.ones(2, 1, 3, 3, 1), torch.zeros(2, 1, 3, 3, 1)
    x_t = sampler.add_noise(x0, noise, torch.tensor([0, 299]))
    assert x_t[0].mean() > 0.99
    assert x_t[1].mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_never_reaches_the_tables(dtype: torch.dtype) -> None:
    sampler = DDPMSampler()
    before = copy.deepcopy(sampler.alphas_cumprod)
    holder = torch.nn.Sequential(torch.nn.Linear(2, 2), sampler).to(dtype)
    assert holder[0].weight.dtype == dtype
    x0, noise = torch.randn(3, 4).to(dtype), torch.randn(3, 4).to(dtype)
    timesteps = torch.tensor([0, 100, 299])
    x_t = sampler.add_noise(x0, noise, timesteps)
    target = sampler.training_target(x0, noise, timesteps)
    assert x_t.dtype == target.dtype == dtype
    assert sampler.alphas_cumprod.dtype == torch.float32
    assert torch.equal(sampler.alphas_cumprod, before)
    exact = sampler.add_noise(x0.float(), noise.float(), timesteps)
    torch.testing.assert_close(x_t, exact.to(dtype))
    previous, estimate = sampler.step(noise, 150, x_t)
    assert previous.dtype == estimate.dtype == dtype
    assert previous.isfinite().all()


def test_tables_are_no_state_and_survive_copies() -> None:
    sampler = DDIMSampler(50)
    assert not sampler.state_dict()
    assert torch.equal(copy.deepcopy(sampler).alphas_cumprod, sampler.alphas_cumprod)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_zero_terminal_snr_is_sampled(name: str, prediction_type: str, steps: int) -> None:
    sampler = create_sampler(name, num_train_timesteps=20, prediction_type=prediction_type, max_beta=1.0)
    assert sampler.alphas_cumprod[-1] == 0
    noise = torch.randn(4, 2)
    sampler.set_timesteps(steps)
    assert sampler.sample(lambda x, t: torch.zeros_like(x), noise).isfinite().all()


def test_zero_terminal_snr_refuses_noise_prediction() -> None:
    with pytest.raises(UserError, match=r"needs a trace of signal at the last timestep.*v_prediction"):
        DDPMSampler(max_beta=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDPMSampler(schedule="cosin"), "noise schedule must be a known one.*cosin.*Did you mean cosine"),
        (lambda: DDPMSampler(prediction_type="v"), "prediction type must be a known one.*Known: epsilon, sample, v_p"),
        (lambda: DDPMSampler(prediction_type="epsilo"), "Did you mean epsilon"),
        (lambda: DDPMSampler(timestep_spacing="logsnr"), "timestep spacing must be a known one.*Did you mean log_snr"),
        (lambda: DDPMSampler(num_train_timesteps=0), "num_train_timesteps must be at least 1.*0"),
        (lambda: DDPMSampler(num_train_timesteps=2.5), "num_train_timesteps must be a whole number.*2.5"),
        (lambda: DDPMSampler(beta_end=0.1), "cosine schedule takes only the options s, max_beta"),
        (lambda: DDPMSampler(schedule="linear", beta_end=2.0), r"every beta .* must be in \(0, 1\]"),
        (lambda: DDPMSampler(clip_range=-1.0), "clip_range must be a positive number or two rising ones"),
        (lambda: DDPMSampler(clip_range=(1, -1)), "clip_range must be a positive number or two rising ones"),
        (lambda: DDIMSampler(eta=1.5), r"eta must be in \[0, 1\].*1.5"),
        (lambda: create_sampler("dmpp"), "sampler must be a known one.*Did you mean dpmpp"),
        (lambda: schedule_betas("quadratic", 10), "Known: cosine, linear, scaled_linear"),
    ],
)
def test_bad_settings_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
