"""Pool features of Inception-v3 with the published weights of FID (Heusel et al. 2017), 2048 numbers an image.

Network, weights and the resizing of the original TensorFlow graph come from torch-fidelity, the implementation that
torchmetrics wraps too (torchmetrics resizes in another way, which changes FID). Its own loading would unpickle any
code, so the file is first read with tensors only.

An image in [-1, 1] becomes bytes, as published; grey becomes three equal channels. A volume is seen slice by slice, in
three planes ("2.5D"): per plane the features of the slices at 40, 50 and 60 % of the axis are averaged, and the three
planes stand one after the other, 6144 numbers. What lies far from the centre is not seen. The network knows
photographs: it ranks generators of medical images, but its distances have no medical meaning.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.features.extractor import FeatureExtractor
from medical_diffusion.evaluation.features.weights_file import find_weights
from medical_diffusion.files import file_hash, load_tensors

WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_FILE}"
POOL = "2048"
COLOURS = 3
SLICE_POSITIONS = (0.4, 0.5, 0.6)


class Inception(FeatureExtractor):
    """FID's features of images and volumes.

    Args:
        spatial_dims: 2 for images (depth 1), 3 for volumes in three planes.
        channels: 1 or 3.
        weights_file: ``weights-inception-2015-12-05-6726825d.pth``; by default in torch's folder of checkpoints, and
            downloaded there where it is missing.

    Raises:
        UserError: other channels, the extra ``evaluation`` is not installed, the weights are missing, damaged, hold
            pickled code, or are of another network.
    """

    def __init__(
        self, spatial_dims: int, channels: int = 1, weights_file: str | os.PathLike[str] | None = None
    ) -> None:
        if channels not in (1, COLOURS):
            raise UserError("the extractor inception takes grey or colour images, of 1 or 3 channels", channels)
        preprocessing: dict[str, Any] = {"values": "bytes", "size": 299}
        if spatial_dims == 3:
            preprocessing |= {"planes": 3, "slice_positions": list(SLICE_POSITIONS)}
        super().__init__("inception", spatial_dims, channels, preprocessing)
        network_class = _network_class()
        path = find_weights("inception", WEIGHTS_FILE, WEIGHTS_URL, weights_file, download=True)
        load_tensors(path)
        try:
            self.network = network_class("inception-v3-compat", [POOL], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise UserError(
                f"{WEIGHTS_FILE} must hold the weights of FID's Inception-v3",
                f"{path}: {str(error).splitlines()[0]}",
                f"Download {WEIGHTS_URL} again",
            ) from error
        self.protocol["weights"] = file_hash(path)

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` → ``(B, 2048)``, volumes ``(B, 6144)``."""
        if self.spatial_dims == 2:
            return self._pool(images.squeeze(-1))
        planes = []
        for axis in (2, 3, 4):
            slices = [self._pool(images.select(axis, i)) for i in central_slices(images.shape[axis])]
            planes.append(torch.stack(slices).mean(0))
        return torch.cat(planes, dim=1)

    def _pool(self, images: Tensor) -> Tensor:
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return self.network(levels.expand(-1, COLOURS, -1, -1))[0]


def central_slices(length: int) -> list[int]:
    """Positions of the slices that stand for an axis; one may stand twice on a short axis."""
    return [min(int(share * length), length - 1) for share in SLICE_POSITIONS]


def _network_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        raise UserError(
            "the extractor inception needs the package torch-fidelity, which needs torchvision",
            str(error),
            'Install the extra with: python -m pip install "medical_diffusion[evaluation]", and the torchvision that '
            "belongs to your torch; or take the extractor random, which needs neither",
        ) from error
    return FeatureExtractorInceptionV3
