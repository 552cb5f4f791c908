"""Random numbers that belong to a sample, not to its batch.

One generator per sample, on the CPU: seed 7 gives the same volume alone, in a batch of four, in any order and on any
device (EDM2's convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from medical_diffusion.errors import UserError

Generators: TypeAlias = "torch.Generator | Sequence[torch.Generator] | None"


def noise_for_seeds(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, list[torch.Generator]]:
    """Starting noise, one generator per seed, and those generators for the noise of the steps that follow.

    The generators come back because they have moved on: fresh ones of the same seeds would add the starting noise once
    more in the first stochastic step.

    Args:
        seeds: one whole number in [0, 2⁶⁴) per sample.
        shape: shape of one sample, without the batch axis, for example ``(C, H, W, D)``.
        device: where the noise is returned; it is drawn on the CPU.
        dtype: of the noise returned; it is drawn in float32.

    Returns:
        standard normal noise ``(len(seeds), *shape)`` and the generators, for ``sampler.sample(..., generators=...)``.

    Raises:
        UserError: no seed, or a seed outside [0, 2⁶⁴).
    """
    if len(seeds) == 0:
        raise UserError("at least one seed is needed", list(seeds))
    bad = [seed for seed in seeds if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed < 2**64]
    if bad:
        raise UserError("a seed must be a whole number in [0, 2^64)", bad[0])
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    noise = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
    return noise.to(device=device, dtype=dtype), generators


def randn_like(sample: Tensor, generators: Generators) -> Tensor:
    """Standard normal noise like ``sample`` ``(B, ...)``.

    Args:
        sample: gives shape, device and dtype.
        generators: one per sample, one for the whole batch, or None for torch's global one.

    Raises:
        UserError: another number of generators than samples.
    """
    if generators is None:
        return torch.randn_like(sample)
    if isinstance(generators, torch.Generator):
        noise = torch.randn(sample.shape, generator=generators, device=generators.device)
    else:
        if len(generators) != sample.shape[0]:
            raise UserError(
                f"one generator per sample is needed ({sample.shape[0]} samples)", f"{len(generators)} generators"
            )
        noise = torch.stack([torch.randn(sample.shape[1:], generator=g, device=g.device) for g in generators])
    return noise.to(device=sample.device, dtype=sample.dtype)
