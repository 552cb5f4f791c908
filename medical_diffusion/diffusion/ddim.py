"""Denoising diffusion implicit models (Song et al. 2021, Eqs. 12 and 16).

    x_u = sqrt(abar_u) x_0 + sqrt(1 - abar_u - sigma²) noise(x_t, x_0) + sigma z
    sigma² = eta² (1 - abar_u) / (1 - abar_t) (1 - abar_t / abar_u)

eta = 0 is deterministic, the first-order solver of the probability flow; eta = 1 is ancestral sampling. The noise is
taken from x_t and the (clipped) estimate of x_0, so that both describe the same state.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from medical_diffusion.diffusion.noise import Generators, randn_like
from medical_diffusion.diffusion.sampler import Sampler
from medical_diffusion.errors import UserError


class DDIMSampler(Sampler):
    """Deterministic first-order sampler, or a stochastic one with eta > 0.

    Args:
        eta: share of fresh noise, from 0 (none) to 1 (as in ancestral sampling).
        sampler_options: as for :class:`~medical_diffusion.diffusion.sampler.Sampler`.

    Raises:
        UserError: eta outside [0, 1].
    """

    default_spacing = "quadratic"

    def __init__(self, *args: Any, eta: float = 0.0, **sampler_options: Any) -> None:
        super().__init__(*args, **sampler_options)
        if not 0 <= eta <= 1:
            raise UserError("eta must be in [0, 1]", eta)
        self.eta = eta

    def _advance(self, x0: Tensor, x_t: Tensor, index: int, generators: Generators) -> Tensor:
        a, s = self._a[index], self._s[index]
        a_next, s_next = self._a[index + 1], self._s[index + 1]
        beta = s**2 - (a / a_next) ** 2 * s_next**2
        sigma = self.eta * s_next / s * math.sqrt(beta)
        # a_next x0 + sqrt(s_next² - sigma²) (x_t - a x0) / s, collected so that each tensor is read once
        direction = math.sqrt(max(s_next**2 - sigma**2, 0.0)) / s
        x_next = (a_next - direction * a) * x0 + direction * x_t
        return x_next + sigma * randn_like(x_t, generators) if sigma > 0 else x_next
