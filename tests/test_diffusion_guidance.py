"""Classifier-free guidance: against its formula, against no guidance, and with a mixture whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medical_diffusion.diffusion import SAMPLERS, ClassifierFreeGuidance, Sampler, create_sampler
from medical_diffusion.diffusion.prediction import PREDICTION_TYPES, predicted_x0, prediction_target
from medical_diffusion.errors import UserError

MEANS = torch.tensor([-0.4, 0.4, 0.0])  # two classes and "no class"
STD = 0.2


def denoiser(sampler: Sampler) -> Callable[..., Tensor]:
    """The perfect network for a Gaussian per class."""

    def model(x: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        t = int(timesteps[0])
        a, s = math.sqrt(sampler.alphas_cumprod.double()[t]), sampler.sqrt_one_minus_alphas_cumprod[t].item()
        mean = MEANS[class_labels].view(-1, *[1] * (x.dim() - 1))
        x0 = mean + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * mean)
        return prediction_target(sampler.prediction_type, x0, (x - a * x0) / s, a, s)

    return model


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_scale_one_equals_no_guidance(name: str, prediction_type: str) -> None:
    sampler = create_sampler(name, prediction_type=prediction_type)
    noise, labels = torch.randn(4, 3, 2, 2, 1), torch.tensor([0, 1, 1, 0])
    generators = [[torch.Generator().manual_seed(i) for i in range(4)] for _ in range(2)]
    guided = ClassifierFreeGuidance(denoiser(sampler), labels, 1.0, null_label=2)
    plain = sampler.sample(
        denoiser(sampler), noise, num_steps=10, generators=generators[0], model_kwargs={"class_labels": labels}
    )
    torch.testing.assert_close(sampler.sample(guided, noise, num_steps=10, generators=generators[1]), plain)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_class_reaches_its_mean_and_guidance_exaggerates(name: str) -> None:
    sampler = create_sampler(name)
    labels = torch.tensor([0, 1]).repeat_interleave(4000)
    noise = torch.randn(8000, 1, generator=torch.Generator().manual_seed(0))
    means = {}
    for scale in (0.0, 1.0, 2.0):
        x = sampler.sample(ClassifierFreeGuidance(denoiser(sampler), labels, scale, 2), noise, num_steps=50)
        means[scale] = [x[labels == label].mean().item() for label in (0, 1)]
    assert means[0.0] == pytest.approx([0.0, 0.0], abs=0.02)
    assert means[1.0] == pytest.approx([-0.4, 0.4], abs=0.02)
    assert means[2.0][0] < -0.7 and means[2.0][1] > 0.7


def test_formula_and_batch_of_both() -> None:
    calls = []

    def model(x: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        calls.append((len(x), class_labels.tolist()))
        return class_labels.float().view(-1, 1).expand_as(x)

    x, timesteps = torch.zeros(2, 3), torch.tensor([5, 5])
    guided = ClassifierFreeGuidance(model, torch.tensor([0, 1]), 3.0, null_label=2)(x, timesteps)
    assert calls == [(4, [0, 1, 2, 2])]
    torch.testing.assert_close(guided[:, 0], torch.tensor([2 + 3 * (0 - 2.0), 2 + 3 * (1 - 2.0)]))
    for scale, asked in ((1.0, [0, 1]), (0.0, [2, 2])):
        calls.clear()
        ClassifierFreeGuidance(model, torch.tensor([0, 1]), scale, null_label=2)(x, timesteps)
        assert calls == [(2, asked)]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_target_gives_the_same_guided_data(prediction_type: str) -> None:
    sampler = create_sampler("ddim", prediction_type=prediction_type)
    x, t, labels = torch.randn(3, 5), 150, torch.tensor([0, 1, 0])
    a, s = math.sqrt(sampler.alphas_cumprod.double()[t]), sampler.sqrt_one_minus_alphas_cumprod[t].item()
    output = ClassifierFreeGuidance(denoiser(sampler), labels, 2.5, 2)(x, torch.full((3,), t))
    reference = create_sampler("ddim", prediction_type="sample")
    expected = ClassifierFreeGuidance(denoiser(reference), labels, 2.5, 2)(x, torch.full((3,), t))
    torch.testing.assert_close(predicted_x0(prediction_type, output, x, a, s), expected, atol=1e-4, rtol=1e-4)


def test_negative_scale_is_refused() -> None:
    with pytest.raises(UserError, match=r"guidance_scale must not be negative.*-1"):
        ClassifierFreeGuidance(lambda x, t: x, torch.tensor([0]), -1.0, 1)
