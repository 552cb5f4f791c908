"""Noise schedules: how much of the signal is left at each of the T training timesteps.

The forward process is ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`` with ``abar_t = prod_{i <= t} (1 - beta_i)``
(Ho et al. 2020, Eq. 4). A schedule is the sequence of ``beta_t``; it is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from medical_diffusion.errors import UserError, did_you_mean

MAX_BETA = 0.999
"""Betas are clipped here, so that a trace of the signal is left at the last timestep (Nichol & Dhariwal 2021, 3.2)."""

REFERENCE_TIMESTEPS = 1000
"""T for which the usual end points of the linear schedules were chosen (Ho et al. 2020, Section 4)."""


def cosine(num_train_timesteps: int, s: float = 0.008, max_beta: float = MAX_BETA) -> Tensor:
    """Cosine schedule, ``abar(u) = cos²(π/2 (u + s) / (1 + s))`` for u in [0, 1] (Nichol & Dhariwal 2021, Eq. 17).

    Args:
        num_train_timesteps: T.
        s: offset that keeps the first betas from vanishing.
        max_beta: upper limit of the betas, at most 1; 1 leaves no signal at the last timestep (zero terminal SNR).

    Returns:
        betas, float64, ``(T,)``.
    """
    u = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
    alphas_cumprod = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    # cos(pi/2) is not exactly zero in floating point
    alphas_cumprod[-1] = 0
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)


def linear(num_train_timesteps: int, beta_start: float | None = None, beta_end: float | None = None) -> Tensor:
    """Betas rise linearly (Ho et al. 2020).

    The usual end points 1e-4 and 0.02 suit 1000 timesteps; with fewer, much of the signal would survive the last one.
    Where an end point is not given it is therefore multiplied by 1000 / T (as in Nichol & Dhariwal 2021).

    Returns:
        betas, float64, ``(T,)``.
    """
    start, end = _end_points(num_train_timesteps, beta_start, beta_end)
    return torch.linspace(start, end, num_train_timesteps, dtype=torch.float64)


def scaled_linear(num_train_timesteps: int, beta_start: float | None = None, beta_end: float | None = None) -> Tensor:
    """The square roots of the betas rise linearly (Rombach et al. 2022); end points as in :func:`linear`.

    Returns:
        betas, float64, ``(T,)``.
    """
    start, end = _end_points(num_train_timesteps, beta_start, beta_end)
    return torch.linspace(math.sqrt(start), math.sqrt(end), num_train_timesteps, dtype=torch.float64) ** 2


def _end_points(num_train_timesteps: int, beta_start: float | None, beta_end: float | None) -> tuple[float, float]:
    scale = REFERENCE_TIMESTEPS / num_train_timesteps
    start = min(1e-4 * scale, MAX_BETA) if beta_start is None else beta_start
    end = min(2e-2 * scale, MAX_BETA) if beta_end is None else beta_end
    return start, end


SCHEDULES: dict[str, Callable[..., Tensor]] = {"cosine": cosine, "linear": linear, "scaled_linear": scaled_linear}


def schedule_betas(name: str, num_train_timesteps: int, **options: float) -> Tensor:
    """The betas of a schedule by its name.

    Args:
        name: ``cosine``, ``linear`` or ``scaled_linear``.
        num_train_timesteps: T, at least 1.
        options: passed on to the schedule's function.

    Returns:
        betas, float64, ``(T,)``, each in (0, 1].

    Raises:
        UserError: unknown name or option, T below 1, or betas outside (0, 1].
    """
    if name not in SCHEDULES:
        raise UserError("the noise schedule must be a known one", name, did_you_mean(name, SCHEDULES))
    if isinstance(num_train_timesteps, bool) or int(num_train_timesteps) != num_train_timesteps:
        raise UserError("num_train_timesteps must be a whole number", num_train_timesteps)
    if num_train_timesteps < 1:
        raise UserError("num_train_timesteps must be at least 1", num_train_timesteps)
    try:
        betas = SCHEDULES[name](num_train_timesteps, **options)
    except TypeError as error:
        known = SCHEDULES[name].__code__.co_varnames[1 : SCHEDULES[name].__code__.co_argcount]
        raise UserError(f"the {name} schedule takes only the options {', '.join(known)}", str(options)) from error
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise UserError("every beta of a noise schedule must be in (0, 1]", f"{name} with {options}")
    return betas
