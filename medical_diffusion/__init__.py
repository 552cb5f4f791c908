"""medical_diffusion: a MONAI extension that synthesises medical images by latent diffusion."""

__version__ = "0.1.0"
