"""The linear skip of the diffusion UNet: exact for Gaussian latents, through samplers, training and weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from bundle_runs import TINY_TRAINING, run
from torch import Tensor

from medical_diffusion.diffusion import create_sampler
from medical_diffusion.diffusion.prediction import PREDICTION_TYPES, predicted_x0
from medical_diffusion.errors import UserError
from medical_diffusion.networks import UNet, WienerSkip

SIZES = [(16, 16, 1), (8, 8, 8), (9, 7, 4), (1, 5, 1)]


def scheduler(prediction_type: str = "v_prediction", **options):
    return create_sampler("dpmpp", num_train_timesteps=100, prediction_type=prediction_type, **options)


def smooth_latents(count: int, size: tuple[int, ...]) -> Tensor:
    """Smooth Gaussian latents of two channels that are nearly one, with a mean that differs from place to place."""
    generator = torch.Generator().manual_seed(0)
    smooth, fine = torch.randn(2, count, 1, *size, generator=generator)
    for axis, length in enumerate(size, start=2):
        if length > 1:
            smooth = (smooth + smooth.roll(1, axis)) / 2
    return 5 * torch.cat([smooth, smooth + 0.02 * fine], dim=1) + torch.randn(2, *size, generator=generator)


def fitted(prediction_type: str, latents: Tensor) -> WienerSkip:
    skip = WienerSkip(2, latents.shape[2:], scheduler(prediction_type))
    skip.fit(latents.split(64))
    return skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_of_power_one_it_is_a_number_for_each_timestep(prediction_type, size):
    skip, x, t = WienerSkip(2, size, scheduler(prediction_type)), torch.randn(3, 2, *size), torch.tensor([0, 40, 99])
    a, s = (table[t].view(-1, 1, 1, 1, 1) for table in (skip.signal, skip.noise))
    factor = {"epsilon": s, "sample": a, "v_prediction": torch.zeros_like(s)}[prediction_type]
    torch.testing.assert_close(skip(x, t), factor * x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("timestep", [20, 60, 90])
def test_every_prediction_type_gives_the_best_linear_x0(size, timestep):
    latents = smooth_latents(2000 * max(1, 256 // math.prod(size)), size)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    t = torch.full((len(latents),), timestep)
    found = []
    for prediction_type in PREDICTION_TYPES:
        skip = fitted(prediction_type, latents)
        a, s = skip.signal[timestep], skip.noise[timestep]
        x = a * latents + s * noise
        found.append(predicted_x0(prediction_type, skip(x, t), x, a, s))
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[2], found[1], atol=1e-3, rtol=1e-3)

    residual, around = latents - found[1], latents - latents.mean(0)
    for channel in range(2):
        # what is left has no correlation with the input, which is what keeps the energy of samples
        share = (x * residual)[:, channel].mean() / around[:, channel].square().mean()
        assert abs(float(share)) < 0.02
    loss = residual.square().mean()
    assert loss < 0.95 * (latents - a * x).square().mean()  # the skip of v-prediction
    assert all((around - factor * (found[1] - latents.mean(0))).square().mean() > loss for factor in (0.9, 1.1))


def test_a_sampler_with_it_alone_draws_latents_of_the_right_mean_and_spectrum():
    latents = smooth_latents(2000, (16, 16, 1))
    skip = fitted("v_prediction", latents)
    sampler = scheduler(num_inference_steps=100)
    x = torch.randn(1000, 2, 16, 16, 1, generator=torch.Generator().manual_seed(2))
    for t in sampler.timesteps.tolist():
        x, _ = sampler.step(skip(x, torch.full((len(x),), t)), t, x)
    drawn = WienerSkip(2, (16, 16, 1), sampler)
    drawn.fit([x])
    torch.testing.assert_close(drawn.mean, skip.mean, rtol=0, atol=0.6)
    torch.testing.assert_close(drawn.power, skip.power, rtol=0.15, atol=0.01)
    assert skip.power[8].max() > 10 * skip.power[-1].max() > 100 * skip.power[-1].min()


def test_few_latents_leave_the_mean_alone():
    latents = smooth_latents(16, (8, 8, 2))
    assert not fitted("epsilon", latents[:15]).mean.any()
    torch.testing.assert_close(fitted("epsilon", latents).mean, latents.mean(0))
    one = fitted("epsilon", latents[:1])
    assert torch.isfinite(one(torch.randn(2, 2, 8, 8, 2), torch.tensor([0, 99]))).all()


def test_any_batch_and_half_precision():
    skip = fitted("v_prediction", smooth_latents(200, (12, 5, 3)))
    x, t = torch.randn(3, 2, 12, 5, 3), torch.tensor([3, 50, 97])
    y = skip(x, t)
    for n in range(3):
        torch.testing.assert_close(y[n : n + 1], skip(x[n : n + 1], t[n : n + 1]))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(skip(x, t), y)
    assert skip(x.bfloat16(), t).dtype == torch.float32


def test_errors():
    skip = WienerSkip(2, (8, 8, 2), scheduler())
    with pytest.raises(UserError, match="the power of the latents needs latents"):
        skip.fit([])
    other = torch.zeros(1, 2, 8, 8, 3)
    for call in (lambda: skip.fit([other]), lambda: skip(other, torch.tensor([5]))):
        with pytest.raises(UserError, match=r"\(B, 2, 8, 8, 2\), as the linear skip.*\(1, 2, 8, 8, 3\)"):
            call()


def test_a_new_network_predicts_its_skip_and_trains_the_rest():
    skip = fitted("v_prediction", smooth_latents(200, (8, 8, 2)))
    network = UNet(2, width=8, num_heads=2, head_channels=8, linear_skip=skip)
    x, t = torch.randn(2, 2, 8, 8, 2), torch.tensor([10, 90])
    torch.testing.assert_close(network(x, t), skip(x, t))
    torch.testing.assert_close(network(x, 90), skip(x, torch.tensor([90, 90])))
    assert not any(name.startswith("linear_skip") for name, _ in network.named_parameters())
    other = UNet(2, width=8, num_heads=2, head_channels=8, linear_skip=WienerSkip(2, (8, 8, 2), scheduler()))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(x, t), network(x, t))


def test_a_run_measures_it_keeps_it_and_continues_with_it(tmp_path: Path):
    options = {**TINY_TRAINING, "linear_skip": "wiener", "prediction_type": "v_prediction"}
    run("train", run_dir=str(tmp_path / "whole"), **options)
    whole = torch.load(tmp_path / "whole" / "models" / "model.pt", weights_only=True)["model"]
    power = whole["linear_skip.power"]
    assert torch.isfinite(power).all()
    assert not torch.allclose(power, torch.ones_like(power))

    run("train", run_dir=str(tmp_path / "parts"), **{**options, "diffusion_steps": 2})
    run("train", run_dir=str(tmp_path / "parts"), **options)
    parts = torch.load(tmp_path / "parts" / "models" / "model.pt", weights_only=True)["model"]
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)

    run("inference", run_dir=str(tmp_path / "whole"), output_dir=str(tmp_path / "out"), num_samples=1, device="cpu")
    assert (tmp_path / "out" / "sample_0.nii.gz").is_file()
