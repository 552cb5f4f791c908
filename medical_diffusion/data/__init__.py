"""Data: manifests, discovery, checks, reading and preprocessing of volumes and flat images."""

from medical_diffusion.data.augmentation import RandomFlips, flip_variants
from medical_diffusion.data.checks import Fault, VolumeHeader
from medical_diffusion.data.crops import CropDataset
from medical_diffusion.data.halves import both_halves
from medical_diffusion.data.image_set import ImageSet, check_alike
from medical_diffusion.data.latent_cache import LatentDataset, weights_hash
from medical_diffusion.data.listing.classes import count_labels, resolve_classes
from medical_diffusion.data.listing.datalist import DataList, build_datalist
from medical_diffusion.data.listing.discovery import find_volumes
from medical_diffusion.data.listing.manifest import Manifest, load_manifest
from medical_diffusion.data.listing.segmentation import LabelledList, build_labelled_list, draw_share
from medical_diffusion.data.listing.split import split_subjects
from medical_diffusion.data.listing.tables import read_table
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.loader import StepLoader, StepSampler
from medical_diffusion.data.preprocessing import (
    CenterCropOrPadd,
    CropHalfd,
    CropToForegroundd,
    HistogramStandardized,
    IntensityScaling,
    RequireVariationd,
    ResizeVolumed,
    ScaleToModelRanged,
    fit_landmarks,
    resize_volume,
)
from medical_diffusion.data.preprocessing.labels import EncodeLabelsd, SampleForegroundd
from medical_diffusion.data.reading.flat_image import FlatImage
from medical_diffusion.data.reading.headers import read_header
from medical_diffusion.data.reading.images import read_image
from medical_diffusion.data.reading.itk import SimpleITKReader
from medical_diffusion.data.reading.reader import LoadVolumed, load_volume
from medical_diffusion.data.torchio_augmentation import SegmentationAugmentation, flip_axes
from medical_diffusion.data.verify import VerificationReport, verify_dataset
from medical_diffusion.data.volume_cache import SafePersistentDataset

__all__ = [
    "CenterCropOrPadd",
    "CropDataset",
    "CropHalfd",
    "CropToForegroundd",
    "DataList",
    "EncodeLabelsd",
    "Fault",
    "FlatImage",
    "HistogramStandardized",
    "ImageSet",
    "IntensityScaling",
    "LabelledList",
    "LatentDataset",
    "LoadVolumed",
    "Manifest",
    "RandomFlips",
    "RequireVariationd",
    "ResizeVolumed",
    "SafePersistentDataset",
    "SampleForegroundd",
    "ScaleToModelRanged",
    "SegmentationAugmentation",
    "SimpleITKReader",
    "StepLoader",
    "StepSampler",
    "VerificationReport",
    "VolumeFile",
    "VolumeHeader",
    "both_halves",
    "build_datalist",
    "build_labelled_list",
    "check_alike",
    "count_labels",
    "draw_share",
    "find_volumes",
    "fit_landmarks",
    "flip_axes",
    "flip_variants",
    "load_manifest",
    "load_volume",
    "read_header",
    "read_image",
    "read_table",
    "resize_volume",
    "resolve_classes",
    "split_subjects",
    "verify_dataset",
    "weights_hash",
]
