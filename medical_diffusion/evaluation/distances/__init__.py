"""Distances between two sets of feature vectors: FID, KID, precision and recall, density and coverage."""

from medical_diffusion.evaluation.distances.extrapolation import FidExtrapolation, fid_infinity
from medical_diffusion.evaluation.distances.fid import SmallSampleWarning, fid, is_rank_deficient
from medical_diffusion.evaluation.distances.kid import kid
from medical_diffusion.evaluation.distances.manifold import precision_recall_density_coverage

__all__ = [
    "FidExtrapolation",
    "SmallSampleWarning",
    "fid",
    "fid_infinity",
    "is_rank_deficient",
    "kid",
    "precision_recall_density_coverage",
]
