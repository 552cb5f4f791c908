"""Figures of quality: reconstruction, sharpness, anatomy in place, nearest training neighbours, class agreement."""

from medical_diffusion.evaluation.agreement import Agreement, AgreementReport, ClassAgreement
from medical_diffusion.evaluation.anatomy import ChestAnatomy, chest_anatomy
from medical_diffusion.evaluation.bootstrap import (
    Interval,
    bootstrap_deviation,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_means,
    bootstrap_ratio,
)
from medical_diffusion.evaluation.distances import fid, fid_infinity, kid, precision_recall_density_coverage
from medical_diffusion.evaluation.diversity import diversity_gap, ms_ssim_diversity
from medical_diffusion.evaluation.features import create_extractor, extract_features
from medical_diffusion.evaluation.neighbours import MemorisationReport, Neighbours, memorisation, nearest_neighbours
from medical_diffusion.evaluation.permutation import (
    permutation_test,
    permutation_test_fid,
    permutation_test_kid,
    real_floor,
    real_floors,
    subsample_interval,
    subsample_intervals,
)
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
    "bootstrap_ratio",
    "chest_anatomy",
    "create_extractor",
    "diversity_gap",
    "extract_features",
    "fid",
    "fid_infinity",
    "high_frequency_energy",
    "high_frequency_ratio",
    "kid",
    "mean_squared_error",
    "memorisation",
    "ms_ssim_diversity",
    "nearest_neighbours",
    "permutation_test",
    "permutation_test_fid",
    "permutation_test_kid",
    "precision_recall_density_coverage",
    "psnr",
    "radial_power_spectrum",
    "real_floor",
    "real_floors",
    "reconstruction_metrics",
    "subsample_interval",
    "subsample_intervals",
    "trilinear_baseline",
]
