"""Accuracy of samplers with few steps, where the exact answer is known.

Data from N(0.3, std²) has a perfect denoiser in closed form, so whatever differs from ``std`` in the samples is the
sampler's own error. Every scheduler gets the same betas (cosine, T = 300), the same starting noise and no clipping.

    python benchmarks/sampler_accuracy.py [--std 0.5 0.1] [--samples 100000]

prints a Markdown table. diffusers is optional (``pip install -e ".[test]"``).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import torch
from torch import Tensor

from medical_diffusion.diffusion import SAMPLERS, DDPMSampler, create_sampler

MEAN = 0.3
TIMESTEPS = 300
STEPS = (10, 20, 50, 300)
ALPHAS_CUMPROD = torch.cumprod(1 - DDPMSampler(TIMESTEPS).betas.double(), 0)


def perfect_noise(x: Tensor, t: int, std: float) -> Tensor:
    """E[noise | x_t = x] for data from N(MEAN, std²)."""
    a, s = math.sqrt(ALPHAS_CUMPROD[t]), math.sqrt(1 - ALPHAS_CUMPROD[t])
    return s * (x - a * MEAN) / (a**2 * std**2 + s**2)


def ours(name: str, **options: Any) -> Callable[[int, float, Tensor], Tensor]:
    def sample(steps: int, std: float, noise: Tensor) -> Tensor:
        sampler = create_sampler(name, num_train_timesteps=TIMESTEPS, **options)
        return sampler.sample(lambda x, t: perfect_noise(x, int(t[0]), std), noise, num_steps=steps)

    return sample


def scheduler(build: Callable[[], Any]) -> Callable[[int, float, Tensor], Tensor]:
    """Sampling with a scheduler of MONAI or diffusers, stepped as their own loops do."""

    def sample(steps: int, std: float, noise: Tensor) -> Tensor:
        schedule, x = build(), noise
        schedule.set_timesteps(steps)
        for t in schedule.timesteps:
            x = schedule.step(perfect_noise(x, int(t), std), t, x)[0]
        return x

    return sample


def candidates() -> dict[str, Callable[[int, float, Tensor], Tensor]]:
    """Name of the row and the function that samples."""
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    rows = {f"ours {cls.__name__}": ours(name) for name, cls in SAMPLERS.items()} | {
        f"ours {cls.__name__} (uniform)": ours(name, timestep_spacing="uniform") for name, cls in SAMPLERS.items()
    }
    version = metadata.version("monai")
    rows |= {
        f"MONAI {version} {cls.__name__}": scheduler(lambda cls=cls: cls(TIMESTEPS, "cosine", clip_sample=False))
        for cls in (DDPMScheduler, DDIMScheduler)
    }
    if util.find_spec("diffusers"):
        import diffusers

        betas = DDPMSampler(TIMESTEPS).betas.numpy()
        shared = {"num_train_timesteps": TIMESTEPS, "trained_betas": betas}
        builds = {
            "DDPMScheduler": lambda: diffusers.DDPMScheduler(**shared, clip_sample=False),
            "DDIMScheduler": lambda: diffusers.DDIMScheduler(**shared, clip_sample=False),
            "DPMSolverMultistepScheduler": lambda: diffusers.DPMSolverMultistepScheduler(**shared),
            "DPMSolverMultistepScheduler (lambda_min_clipped=-5.1)": lambda: diffusers.DPMSolverMultistepScheduler(
                **shared, lambda_min_clipped=-5.1
            ),
        }
        version = metadata.version("diffusers")
        rows |= {f"diffusers {version} {name}": scheduler(build) for name, build in builds.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--std", type=float, nargs="+", default=[0.5, 0.1], help="standard deviations of the data")
    parser.add_argument("--samples", type=int, default=100_000)
    arguments = parser.parse_args()
    for std in arguments.std:
        print(f"\nStandard deviation of the samples, exact {std}; error of the mean (exact {MEAN}) in brackets\n")
        print("| sampler | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
        print("|---" * (len(STEPS) + 1) + "|")
        for name, sample in candidates().items():
            cells = []
            for steps in STEPS:
                torch.manual_seed(0)
                noise = torch.randn(1, arguments.samples)
                x = sample(steps, std, noise)
                cells.append(f"{x.std():.3f} ({x.mean() - MEAN:+.3f})")
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
