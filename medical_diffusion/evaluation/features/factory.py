"""Extractors by name."""

from __future__ import annotations

import os
from pathlib import Path

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.evaluation.features.exported import ExportedNetwork
from medical_diffusion.evaluation.features.extractor import FeatureExtractor
from medical_diffusion.evaluation.features.inception import Inception
from medical_diffusion.evaluation.features.medicalnet import MedicalNet
from medical_diffusion.evaluation.features.random_network import RandomNetwork

EXTRACTORS = ("random", "inception", "medicalnet")


def create_extractor(
    name_or_path: str | os.PathLike[str],
    spatial_dims: int,
    channels: int = 1,
    weights_file: str | os.PathLike[str] | None = None,
) -> FeatureExtractor:
    """The extractor of a name, or of the file of an exported network.

    Args:
        name_or_path: ``random``, ``inception``, ``medicalnet``, or the path of a TorchScript file or of a ``.pt2``.
        spatial_dims: 2 for images (depth 1), 3 for volumes.
        channels: of the images.
        weights_file: published weights of ``inception`` or ``medicalnet``, where they are not in torch's folder.

    Raises:
        UserError: an unknown name, weights for an extractor that has none, or one that is not obtainable.
    """
    name = str(name_or_path)
    if weights_file is not None and name not in ("inception", "medicalnet"):
        raise UserError("only inception and medicalnet take a file of weights", f"{name} with {weights_file}")
    if name == "random":
        return RandomNetwork(spatial_dims, channels)
    if name == "inception":
        return Inception(spatial_dims, channels, weights_file)
    if name == "medicalnet":
        return MedicalNet(spatial_dims, channels, weights_file)
    if not Path(name).suffix and not Path(name).exists():
        raise UserError(
            "the extractor must be a known one, or the file of an exported network",
            name,
            did_you_mean(name, EXTRACTORS),
        )
    return ExportedNetwork(name_or_path, spatial_dims, channels)
