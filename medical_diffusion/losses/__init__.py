"""Loss terms by name; SSIM and MS-SSIM are also the metrics of the evaluation."""

from __future__ import annotations

from medical_diffusion.losses.adversarial import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from medical_diffusion.losses.perceptual import PerceptualLoss
from medical_diffusion.losses.prediction import prediction_loss
from medical_diffusion.losses.spectral import SpectralLoss
from medical_diffusion.losses.ssim import StructuralLoss, ms_ssim, ssim

__all__ = [
    "PerceptualLoss",
    "SpectralLoss",
    "StructuralLoss",
    "feature_matching_loss",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "ms_ssim",
    "prediction_loss",
    "ssim",
]
