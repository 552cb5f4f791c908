"""Seeds to latents to volumes to files."""

from medical_diffusion.synthesis.class_labels import ClassLabels
from medical_diffusion.synthesis.sampling import LatentSampler, SeedDataset, SynthesisEvaluator
from medical_diffusion.synthesis.writer import SampleWriter, centred_affine, intensity_of_samples

__all__ = [
    "ClassLabels",
    "LatentSampler",
    "SampleWriter",
    "SeedDataset",
    "SynthesisEvaluator",
    "centred_affine",
    "intensity_of_samples",
]
