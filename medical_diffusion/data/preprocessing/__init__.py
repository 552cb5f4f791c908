"""What MONAI's transforms lack to bring a volume to the model's grid and range, one step a file."""

from medical_diffusion.data.preprocessing.crop import CenterCropOrPadd
from medical_diffusion.data.preprocessing.foreground import CropToForegroundd
from medical_diffusion.data.preprocessing.halves import SIDES, CropHalfd
from medical_diffusion.data.preprocessing.histogram import HistogramStandardized, fit_landmarks
from medical_diffusion.data.preprocessing.intensity import INTENSITY_MODES, IntensityScaling, ScaleToModelRanged
from medical_diffusion.data.preprocessing.resize import ResizeVolumed, resize_volume
from medical_diffusion.data.preprocessing.variation import RequireVariationd

__all__ = [
    "INTENSITY_MODES",
    "SIDES",
    "CenterCropOrPadd",
    "CropHalfd",
    "CropToForegroundd",
    "HistogramStandardized",
    "IntensityScaling",
    "RequireVariationd",
    "ResizeVolumed",
    "ScaleToModelRanged",
    "fit_landmarks",
    "resize_volume",
]
