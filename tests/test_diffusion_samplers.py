"""Samplers against an exact denoiser, against each other and against diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from medical_diffusion.diffusion import (
    SAMPLERS,
    DDIMSampler,
    DDPMSampler,
    DPMSolverPlusPlusSampler,
    Sampler,
    create_sampler,
    noise_for_seeds,
)
from medical_diffusion.diffusion.prediction import PREDICTION_TYPES, prediction_target
from medical_diffusion.diffusion.spacing import SPACINGS
from medical_diffusion.errors import UserError

MEAN = 0.3


def gaussian_denoiser(sampler: Sampler, std: float, mean: float = MEAN) -> Callable[..., Tensor]:
    """The perfect network for data from N(mean, std²): its x_0 is the posterior mean."""

    def model(x: Tensor, timesteps: Tensor) -> Tensor:
        t = int(timesteps[0])
        a, s = math.sqrt(sampler.alphas_cumprod.double()[t]), sampler.sqrt_one_minus_alphas_cumprod[t].item()
        x0 = mean + a * std**2 / (a**2 * std**2 + s**2) * (x - a * mean)
        return prediction_target(sampler.prediction_type, x0, (x - a * x0) / s, a, s)

    return model


def exact_ancestral_std(sampler: Sampler, std: float) -> float:
    """Standard deviation of ancestral sampling with the perfect network, from the recursion of its variance."""
    alphas_cumprod = [sampler.alphas_cumprod.double()[t].item() for t in sampler.timesteps] + [1.0]
    variance = 1.0
    for now, after in pairwise(alphas_cumprod):
        shrink = math.sqrt(now) * std**2 / (now * std**2 + 1 - now)
        alpha = now / after
        factor = (math.sqrt(after) * (1 - alpha) * shrink + math.sqrt(alpha) * (1 - after)) / (1 - now)
        variance = factor**2 * variance + (1 - alpha) * (1 - after) / (1 - now)
    return math.sqrt(variance)


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 20, 50, 300])
def test_ancestral_sampling_has_the_exact_variance(std: float, steps: int) -> None:
    sampler = DDPMSampler()
    torch.manual_seed(0)
    x = sampler.sample(gaussian_denoiser(sampler, std), torch.randn(100_000), num_steps=steps)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(exact_ancestral_std(sampler, std), rel=0.01)


# relative error of the standard deviation after 10, 20, 50 steps, worst over std 0.2, 0.5 and 1
TOLERANCE = {"ddpm": (0.35, 0.21, 0.1), "ddim": (0.22, 0.12, 0.05), "dpmpp": (0.04, 0.02, 0.006)}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "scaled_linear"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_few_steps_come_close_to_the_target(name: str, schedule: str) -> None:
    torch.manual_seed(0)
    noise = torch.randn(50_000)
    for steps, tolerance in zip((10, 20, 50), TOLERANCE[name], strict=True):
        for std in (0.2, 0.5, 1.0):
            sampler = create_sampler(name, schedule=schedule)
            x = sampler.sample(gaussian_denoiser(sampler, std), noise, num_steps=steps)
            assert x.std().item() == pytest.approx(std, rel=tolerance), (steps, std)
            assert x.mean().item() == pytest.approx(MEAN, abs=0.02)


def flow_error(sampler: Sampler, std: float) -> float:
    """Distance from the exact probability flow, which keeps ``(x - a mean) / sqrt(a² std² + s²)``, at timestep 0."""
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    a, s = sampler.sqrt_alphas_cumprod.double(), sampler.sqrt_one_minus_alphas_cumprod.double()

    def spread(t: int) -> Tensor:
        return (a[t] ** 2 * std**2 + s[t] ** 2).sqrt()

    first = int(sampler.timesteps[0])
    exact = a[0] * MEAN + spread(0) * (x - a[first] * MEAN) / spread(first)
    model = gaussian_denoiser(sampler, std)
    for t in sampler.timesteps[:-1].tolist():
        x, _ = sampler.step(model(x, torch.tensor([t])), t, x)
    return (x - exact).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp", 2)])
def test_deterministic_samplers_follow_the_flow_with_their_order(name: str, order: int) -> None:
    # many training timesteps, so that rounding to them does not spoil the spacing; the first step of 2M is first order
    errors = []
    for steps in (40, 80, 160):
        sampler = create_sampler(name, num_train_timesteps=100_000, timestep_spacing="log_snr")
        sampler.set_timesteps(steps)
        errors.append(flow_error(sampler, 0.5))
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(rate == pytest.approx(order, abs=0.25) for rate in rates), (errors, rates)


@pytest.mark.parametrize("std", [0.2, 0.5, 1.0])
def test_one_ddim_step_is_the_exact_first_order_map(std: float) -> None:
    sampler = DDIMSampler()
    sampler.set_timesteps(timesteps=[250, 100])
    x = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    a, s = (math.sqrt(v) for v in (sampler.alphas_cumprod[250], 1 - sampler.alphas_cumprod[250]))
    a_next, s_next = (math.sqrt(v) for v in (sampler.alphas_cumprod[100], 1 - sampler.alphas_cumprod[100]))
    x0 = MEAN + a * std**2 / (a**2 * std**2 + s**2) * (x - a * MEAN)
    expected = a_next * x0 + s_next * (x - a * x0) / s
    previous, estimate = sampler.step(gaussian_denoiser(sampler, std)(x, torch.tensor([250])), 250, x)
    torch.testing.assert_close(estimate, x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(previous, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_prediction_types_give_the_same_sample(name: str) -> None:
    results = []
    for prediction_type in PREDICTION_TYPES:
        sampler = create_sampler(name, prediction_type=prediction_type)
        noise, generators = noise_for_seeds([1, 2], (4,))
        model = gaussian_denoiser(sampler, 0.5)
        results.append(sampler.sample(model, noise.double(), 20, generators))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(results[0], results[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [10, 300])
def test_ddim_with_full_noise_is_ancestral(steps: int) -> None:
    ddpm, ddim = DDPMSampler(), DDIMSampler(eta=1.0)
    samples = []
    for sampler in (ddpm, ddim):
        noise, generators = noise_for_seeds([5], (16,))
        samples.append(sampler.sample(gaussian_denoiser(sampler, 0.5), noise, steps, generators))
    torch.testing.assert_close(samples[0], samples[1], rtol=1e-4, atol=1e-4)


def test_dpm_solver_of_first_order_is_ddim() -> None:
    # two steps: the first has no step before it, the last one is first order
    timesteps = [200, 60]
    samples = []
    for sampler in (DDIMSampler(), DPMSolverPlusPlusSampler()):
        sampler.set_timesteps(timesteps=timesteps)
        samples.append(sampler.sample(gaussian_denoiser(sampler, 0.5), torch.linspace(-2, 2, 5)))
    torch.testing.assert_close(samples[0], samples[1])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [1, 2, 7, 300, 1000])
def test_spacings_fall_to_zero_without_repeats(spacing: str, total: int) -> None:
    sampler = DDPMSampler(total, timestep_spacing=spacing)
    assert sampler.timesteps.tolist() == list(range(total - 1, -1, -1))
    for steps in {n for n in (1, 2, 3, 5, 7, 10, 50, 123, 299, 999) if n <= total}:
        sampler.set_timesteps(steps)
        timesteps = sampler.timesteps.tolist()
        assert len(timesteps) == steps == sampler.num_inference_steps
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert timesteps[0] < total
        assert timesteps[-1] >= 0
        assert steps == 1 or timesteps[-1] == 0


def test_few_steps_start_where_a_trace_of_signal_is_left() -> None:
    # at t = 299 the estimate of x_0 divides the error of the predicted noise by a = 0.00016
    sampler = DDPMSampler(300, num_inference_steps=20)
    assert sampler.log_snr[int(sampler.timesteps[0])] > -5.1
    assert sampler.sqrt_alphas_cumprod[int(sampler.timesteps[0])] < 0.02


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    sampler = create_sampler(name, clip_range=1.0)
    model = gaussian_denoiser(sampler, 0.5)

    def draw(seeds: list[int]) -> Tensor:
        noise, generators = noise_for_seeds(seeds, (2, 4, 3, 1))
        return sampler.sample(model, noise, 20, generators)

    batch = draw([3, 4, 5, 6])
    for i, seed in enumerate([3, 4, 5, 6]):
        assert torch.equal(draw([seed])[0], batch[i])
    assert torch.equal(draw([6, 4]), batch[[3, 1]])
    assert not torch.equal(batch[0], batch[1])


def test_stochastic_steps_do_not_repeat_the_starting_noise() -> None:
    noise, generators = noise_for_seeds([7], (64,))
    sampler = DDPMSampler()
    x, _ = sampler.step(torch.zeros(1, 64), 150, torch.zeros(1, 64), generators)
    assert abs(torch.corrcoef(torch.cat([noise, x]))[0, 1]) < 0.5


def test_noise_is_the_same_in_every_precision() -> None:
    noise, _ = noise_for_seeds([1, 2], (8,))
    half, _ = noise_for_seeds([1, 2], (8,), dtype=torch.bfloat16)
    assert torch.equal(noise.bfloat16(), half)


@pytest.mark.parametrize("name", SAMPLERS)
def test_clipping_keeps_the_sample_in_range(name: str) -> None:
    sampler = create_sampler(name, clip_range=(-0.5, 0.25))
    x = sampler.sample(gaussian_denoiser(sampler, 2.0), torch.randn(1000), 10)
    assert x.min() == pytest.approx(-0.5)
    assert x.max() == pytest.approx(0.25)


@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_models_are_sampled_in_float32(name: str) -> None:
    sampler = create_sampler(name).to(torch.bfloat16)
    exact = create_sampler(name)
    seen = set()

    def model(x: Tensor, timesteps: Tensor) -> Tensor:
        seen.add(x.dtype)
        return gaussian_denoiser(exact, 0.5)(x.float(), timesteps).to(x.dtype)

    noise, generators = noise_for_seeds([1], (20_000,), dtype=torch.bfloat16)
    x = sampler.sample(model, noise, 50, generators)
    assert seen == {torch.bfloat16} == {x.dtype}
    assert x.float().std().item() == pytest.approx(0.5, rel=0.08)


def test_arguments_and_progress_reach_the_model() -> None:
    seen: list[tuple[int, str]] = []
    counted: list[int] = []

    def model(x: Tensor, timesteps: Tensor, label: str) -> Tensor:
        assert timesteps.shape == (3,)
        assert timesteps.dtype == torch.long
        seen.append((int(timesteps[0]), label))
        return torch.zeros_like(x)

    def progress(steps):
        for step in steps:
            counted.append(step)
            yield step

    sampler = DDIMSampler(num_inference_steps=5)
    sampler.sample(model, torch.randn(3, 2), progress=progress, model_kwargs={"label": "chest"})
    assert [t for t, _ in seen] == counted == sampler.timesteps.tolist()
    assert {label for _, label in seen} == {"chest"}


def test_an_interrupted_chain_leaves_no_trace() -> None:
    sampler = DPMSolverPlusPlusSampler(num_inference_steps=10)
    model, noise = gaussian_denoiser(sampler, 0.5), torch.linspace(-2, 2, 8)
    expected = sampler.sample(model, noise)
    for t in sampler.timesteps[:4].tolist():
        sampler.step(torch.randn(8), t, torch.randn(8))
    assert torch.equal(sampler.sample(model, noise), expected)


def our_betas() -> list[float]:
    return DDPMSampler().betas.tolist()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_equals_diffusers(prediction_type: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        300,
        trained_betas=our_betas(),
        clip_sample=False,
        prediction_type=prediction_type,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(30)
    ours = DDIMSampler(prediction_type=prediction_type)
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    x = expected = torch.linspace(-2, 2, 9)
    model = gaussian_denoiser(ours, 0.5)
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, t[None]), t, expected).prev_sample
        x, _ = ours.step(model(x, t[None]), t, x)
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [30, 300])
def test_ddpm_equals_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(300, trained_betas=our_betas(), clip_sample=False, timestep_spacing="leading")
    theirs.set_timesteps(steps)
    ours = DDPMSampler()
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    model = gaussian_denoiser(ours, 0.5)
    a, b = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    x = expected = torch.linspace(-2, 2, 9)[None]
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, t[None]), t, expected, generator=a).prev_sample
        x, _ = ours.step(model(x, t[None]), t, x, generator=b)
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dpm_solver_equals_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(300, trained_betas=our_betas(), lambda_min_clipped=-5.1)
    theirs.set_timesteps(20)
    ours = DPMSolverPlusPlusSampler()
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    model = gaussian_denoiser(ours, 0.5)
    x = expected = torch.linspace(-2, 2, 9)
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, t[None]), t, expected).prev_sample
        x, _ = ours.step(model(x, t[None]), t, x)
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_monai_respaces_its_ancestral_sampler_wrongly() -> None:
    """The reason for own samplers: MONAI keeps the betas of single timesteps in longer jumps."""
    from monai.networks.schedulers import DDPMScheduler

    theirs = DDPMScheduler(300, "cosine", clip_sample=False)
    theirs.set_timesteps(50)
    ours = DDPMSampler()
    model = gaussian_denoiser(ours, 0.5)
    torch.manual_seed(0)
    noise = x = torch.randn(20_000)
    for t in theirs.timesteps:
        x, _ = theirs.step(model(x[:, None], t[None]), t, x[:, None])
        x = x[:, 0]
    ours_error = abs(ours.sample(model, noise, 50).std().item() - 0.5)
    assert ours_error < 0.05 < 0.2 < abs(x.std().item() - 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.set_timesteps(301), r"must not exceed the number of training timesteps \(300\).*301.*at most 300"),
        (lambda s: s.set_timesteps(0), "number of sampling steps must be a positive whole number.*0"),
        (lambda s: s.set_timesteps(2.5), "number of sampling steps must be a positive whole number.*2.5"),
        (lambda s: s.set_timesteps(), "give either num_inference_steps or timesteps"),
        (lambda s: s.set_timesteps(timesteps=[3, 5]), r"timesteps must fall and lie in \[0, 300\)"),
        (lambda s: s.set_timesteps(timesteps=[300, 5]), r"timesteps must fall and lie in \[0, 300\)"),
        (lambda s: s.set_timesteps(timesteps=[]), r"timesteps must fall and lie in \[0, 300\)"),
        (lambda s: s.step(torch.zeros(1), 500, torch.zeros(1)), "must start at one of the sampler's timesteps.*500"),
        (lambda s: s.step(torch.zeros(1, 2), 5, torch.zeros(1, 1)), r"must have the shape of the sample \(1, 1\)"),
        (lambda s: s.step(torch.zeros(2, 1), 5, torch.zeros(2, 1), [torch.Generator()]), "one generator per sample"),
        (lambda s: noise_for_seeds([], (1,)), "at least one seed is needed"),
        (lambda s: noise_for_seeds([-1], (1,)), r"a seed must be a whole number in \[0, 2\^64\).*-1"),
    ],
)
def test_bad_calls_are_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(DDPMSampler())
