"""Ancestral sampling (Ho et al. 2020), also over a part of the timesteps.

From t to the next chosen timestep u < t, with ``alpha = abar_t / abar_u`` and ``beta = 1 - alpha`` of the whole jump,
the posterior of x_u given x_t and x_0 is normal (their Eqs. 6 and 7):

    mean     = sqrt(abar_u) beta / (1 - abar_t) x_0 + sqrt(alpha) (1 - abar_u) / (1 - abar_t) x_t
    variance = (1 - abar_u) / (1 - abar_t) beta

Taking beta of a single timestep for a longer jump, as happens where only the timesteps are thinned out, leaves much of
the noise in: the betas have to be those of the sub-sequence (Nichol & Dhariwal 2021, Section 4).
"""

from __future__ import annotations

import math

from torch import Tensor

from medical_diffusion.diffusion.noise import Generators, randn_like
from medical_diffusion.diffusion.sampler import Sampler


class DDPMSampler(Sampler):
    """Draws each state from its posterior; the method of the paper with N = T."""

    default_spacing = "quadratic"

    def _advance(self, x0: Tensor, x_t: Tensor, index: int, generators: Generators) -> Tensor:
        a, s = self._a[index], self._s[index]
        a_next, s_next = self._a[index + 1], self._s[index + 1]
        alpha = (a / a_next) ** 2
        # 1 - alpha without cancellation: alpha a_next² = a²
        beta = s**2 - alpha * s_next**2
        mean = (a_next * beta / s**2) * x0 + (math.sqrt(alpha) * (s_next / s) ** 2) * x_t
        if s_next == 0:
            return mean
        return mean + (s_next / s * math.sqrt(beta)) * randn_like(x_t, generators)
