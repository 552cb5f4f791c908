"""Which N of the T training timesteps a sampler visits.

- ``uniform``: equal distances in t.
- ``quadratic``: equal distances in sqrt(t) (Song et al. 2021, DDIM, Appendix D.2): more steps where little noise is
  left and the detail is made. For a first-order step it loses the least variance over targets of all widths.
- ``log_snr``: equal distances in ``lambda = log(a / s)``, half the log signal-to-noise ratio (Lu et al. 2022,
  DPM-Solver, Section 3.3): the variable in which a multistep solver extrapolates.

The last timestep is always 0. The first is the noisiest one that still carries a trace of the signal
(``lambda >= MIN_LOG_SNR``): beyond it the prediction of x_0 from the noise is divided by almost nothing (``a`` is
1.6e-4 at the end of the cosine schedule with T = 300). With N = T every spacing visits every timestep.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medical_diffusion.errors import UserError, did_you_mean

SPACINGS = ("uniform", "quadratic", "log_snr")

MIN_LOG_SNR = -5.1
"""Smallest ``lambda`` to start from, where a = 0.006 (the value of Lu et al. 2022 for the cosine schedule)."""


def check_spacing(name: str) -> str:
    """Returns the name unchanged.

    Raises:
        UserError: unknown spacing.
    """
    if name not in SPACINGS:
        raise UserError("the timestep spacing must be a known one", name, did_you_mean(str(name), SPACINGS))
    return name


def spaced_timesteps(spacing: str, num_steps: int, log_snr: Sequence[float]) -> list[int]:
    """``num_steps`` different timesteps, falling, the last one 0.

    Args:
        spacing: ``uniform``, ``quadratic`` or ``log_snr``.
        num_steps: N, from 1 to T.
        log_snr: ``lambda`` of each of the T training timesteps, falling.
    """
    total, lambdas = len(log_snr), np.asarray(log_snr)
    # a single step has to start from pure noise
    first = max(int(np.searchsorted(-lambdas, -MIN_LOG_SNR, side="right")) - 1, num_steps - 1, 0)
    if num_steps == 1:
        return [first]
    if check_spacing(spacing) == "uniform":
        wanted = np.linspace(first, 0, num_steps)
    elif spacing == "quadratic":
        wanted = np.linspace(np.sqrt(first), 0, num_steps) ** 2
    else:
        lambdas = np.maximum(lambdas, MIN_LOG_SNR)
        grid = np.linspace(lambdas[first], lambdas[0], num_steps)
        wanted = np.interp(grid, lambdas[first::-1], np.arange(first, -1, -1))
    return _distinct(np.rint(wanted).astype(int).tolist(), total)


def _distinct(timesteps: list[int], total: int) -> list[int]:
    """Rounding makes neighbours coincide where the wanted steps are finer than 1: spread them to the noisier side."""
    for i in range(len(timesteps) - 2, -1, -1):
        timesteps[i] = max(timesteps[i], timesteps[i + 1] + 1)
    for i in range(len(timesteps)):
        timesteps[i] = min(timesteps[i], total - 1 if i == 0 else timesteps[i - 1] - 1)
    return timesteps
