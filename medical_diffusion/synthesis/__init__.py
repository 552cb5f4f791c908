"""Seeds to latents to volumes to files."""

from medical_diffusion.synthesis.class_labels import ClassLabels
from medical_diffusion.synthesis.sampling import LatentSampler, SeedDataset, SynthesisEvaluator
from medical_diffusion.synthesis.writer import SampleWriter, centred_affine

__all__ = ["ClassLabels", "LatentSampler", "SampleWriter", "SeedDataset", "SynthesisEvaluator", "centred_affine"]
