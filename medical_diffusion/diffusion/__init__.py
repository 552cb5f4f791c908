"""Diffusion as mathematics on tensors of any rank: schedules, prediction targets, samplers, guidance."""

from __future__ import annotations

from medical_diffusion.diffusion.ddim import DDIMSampler
from medical_diffusion.diffusion.ddpm import DDPMSampler
from medical_diffusion.diffusion.dpm_solver import DPMSolverPlusPlusSampler
from medical_diffusion.diffusion.factory import SAMPLERS, create_sampler
from medical_diffusion.diffusion.guidance import ClassifierFreeGuidance
from medical_diffusion.diffusion.noise import noise_for_seeds
from medical_diffusion.diffusion.sampler import Sampler

__all__ = [
    "SAMPLERS",
    "ClassifierFreeGuidance",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverPlusPlusSampler",
    "Sampler",
    "create_sampler",
    "noise_for_seeds",
]
