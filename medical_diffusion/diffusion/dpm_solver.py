"""DPM-Solver++(2M): second-order multistep solver of the probability flow (Lu et al. 2023, Algorithm 2).

In ``lambda = log(a / s)`` the flow is ``d(x / s) = e^lambda x_0 d lambda``; only x_0 has to be approximated. With
``h = lambda_u - lambda_t`` and x_0 extrapolated linearly from the step before (of length h_before),

    D   = x_0 + h / (2 h_before) (x_0 - x_0_before)
    x_u = s_u / s_t x_t - a_u (e^{-h} - 1) D

The first step has no step before it and the last one is infinitely long in lambda: both are first order (D = x_0), so
the chain ends in the estimate of x_0 itself.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medical_diffusion.diffusion.noise import Generators
from medical_diffusion.diffusion.sampler import Sampler


class DPMSolverPlusPlusSampler(Sampler):
    """Deterministic second-order sampler: 20 steps come closer than 50 of first order."""

    default_spacing = "log_snr"

    def __init__(self, *args: Any, **sampler_options: Any) -> None:
        super().__init__(*args, **sampler_options)
        self._before: tuple[int, Tensor] | None = None

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`Sampler.set_timesteps`; forgets the step before."""
        super().set_timesteps(*args, **kwargs)
        self._before = None

    def _advance(self, x0: Tensor, x_t: Tensor, index: int, generators: Generators) -> Tensor:
        a, s = self._a[index], self._s[index]
        a_next, s_next = self._a[index + 1], self._s[index + 1]
        before, self._before = self._before, (index, x0)
        extrapolated = x0
        # the index tells a continued chain from one begun anew
        if before is not None and before[0] == index - 1 and before[1].shape == x0.shape and s_next > 0:
            h = self._lambda[index + 1] - self._lambda[index]
            h_before = self._lambda[index] - self._lambda[index - 1]
            extrapolated = x0 + (h / (2 * h_before)) * (x0 - before[1])
        if s_next == 0:
            self._before = None
        # -a_next (e^{-h} - 1) with e^{-h} = (a s_next) / (a_next s), which also holds where lambda is infinite
        return (s_next / s) * x_t + (a_next - a * s_next / s) * extrapolated
