"""Features of images, the ground on which FID, KID, precision and recall compare sets."""

from medical_diffusion.evaluation.features.extraction import extract_features
from medical_diffusion.evaluation.features.extractor import FeatureExtractor
from medical_diffusion.evaluation.features.factory import EXTRACTORS, create_extractor

__all__ = ["EXTRACTORS", "FeatureExtractor", "create_extractor", "extract_features"]
