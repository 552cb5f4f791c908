"""Samplers by the names that the command line and the bundles use."""

from __future__ import annotations

from typing import Any

from medical_diffusion.diffusion.ddim import DDIMSampler
from medical_diffusion.diffusion.ddpm import DDPMSampler
from medical_diffusion.diffusion.dpm_solver import DPMSolverPlusPlusSampler
from medical_diffusion.diffusion.sampler import Sampler
from medical_diffusion.errors import UserError, did_you_mean

SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPMSampler, "ddim": DDIMSampler, "dpmpp": DPMSolverPlusPlusSampler}


def create_sampler(name: str, **options: Any) -> Sampler:
    """A sampler by its name.

    Args:
        name: ``ddpm``, ``ddim`` or ``dpmpp``.
        options: of the sampler, see :class:`~medical_diffusion.diffusion.sampler.Sampler`.

    Raises:
        UserError: unknown name.
    """
    if name not in SAMPLERS:
        raise UserError("the sampler must be a known one", name, did_you_mean(str(name), SAMPLERS))
    return SAMPLERS[name](**options)
