"""Figures of quality: reconstruction, sharpness, anatomy in place, nearest training neighbours, class agreement."""

from medical_diffusion.evaluation.agreement import Agreement, AgreementReport, ClassAgreement
from medical_diffusion.evaluation.anatomy import ChestAnatomy, chest_anatomy
from medical_diffusion.evaluation.bootstrap import (
    Interval,
    bootstrap_deviation,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_means,
)
from medical_diffusion.evaluation.neighbours import MemorisationReport, Neighbours, memorisation, nearest_neighbours
from medical_diffusion.evaluation.reconstruction import (
    ReconstructionScore,
    mean_squared_error,
    psnr,
    reconstruction_metrics,
    trilinear_baseline,
)
from medical_diffusion.evaluation.spectrum import high_frequency_energy, high_frequency_ratio, radial_power_spectrum

__all__ = [
    "Agreement",
    "AgreementReport",
    "ChestAnatomy",
    "ClassAgreement",
    "Interval",
    "MemorisationReport",
    "Neighbours",
    "ReconstructionScore",
    "bootstrap_deviation",
    "bootstrap_difference",
    "bootstrap_interval",
    "bootstrap_means",
    "chest_anatomy",
    "high_frequency_energy",
    "high_frequency_ratio",
    "mean_squared_error",
    "memorisation",
    "nearest_neighbours",
    "psnr",
    "radial_power_spectrum",
    "reconstruction_metrics",
    "trilinear_baseline",
]
