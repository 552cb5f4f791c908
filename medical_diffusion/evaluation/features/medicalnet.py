"""Pool features of MedicalNet's 3D ResNet-50, trained to segment 23 sets of CT and MRI (Chen et al. 2019).

The network is MONAI's, the weights are a local file. As in its training, axes run depth, height, width, and the voxels
above the darkest are standardised in each volume: brightness and contrast of a volume do not count.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.features.extractor import FeatureExtractor
from medical_diffusion.evaluation.features.weights_file import find_weights
from medical_diffusion.files import file_hash, load_tensors

WEIGHTS_FILE = "resnet_50_23dataset.pth"
WEIGHTS_URL = f"https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet50/resolve/main/{WEIGHTS_FILE}"
WRAPPER_PREFIX = "module."
"""Of the names in the published file, which was saved from a DataParallel wrapper."""


class MedicalNet(FeatureExtractor):
    """2048 features of a volume.

    Args:
        spatial_dims: 3.
        channels: 1.
        weights_file: ``resnet_50_23dataset.pth``; by default in torch's folder of checkpoints. Nothing is downloaded.

    Raises:
        UserError: images or colours, or the weights are missing, damaged, hold pickled code, or are of another network.
    """

    def __init__(
        self, spatial_dims: int = 3, channels: int = 1, weights_file: str | os.PathLike[str] | None = None
    ) -> None:
        if spatial_dims != 3 or channels != 1:
            raise UserError(
                "the extractor medicalnet takes volumes of one channel",
                f"{spatial_dims}D, {channels} channels",
                "Take inception or random",
            )
        from monai.networks.nets import resnet50

        super().__init__("medicalnet", spatial_dims, channels, {"values": "standardised above the minimum"})
        path = find_weights("medicalnet", WEIGHTS_FILE, WEIGHTS_URL, weights_file, download=False)
        content = load_tensors(path)
        state = {name.removeprefix(WRAPPER_PREFIX): value for name, value in content.get("state_dict", content).items()}
        # the options that fit MedicalNet's weights for ResNet-50
        self.network = resnet50(
            pretrained=False,
            spatial_dims=3,
            n_input_channels=1,
            feed_forward=False,
            shortcut_type="B",
            bias_downsample=False,
        )
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{WEIGHTS_FILE} must hold the weights of MedicalNet's ResNet-50",
                f"{path}: {' '.join(str(error).splitlines()[1:2]).strip()}",
                f"Download {WEIGHTS_URL}",
            ) from error
        self.network.requires_grad_(False).eval()
        self.protocol["weights"] = file_hash(path)

    def features(self, images: Tensor) -> Tensor:
        """``(B, 1, H, W, D)`` → ``(B, 2048)``."""
        return self.network(standardised(images).movedim(4, 2))


def standardised(images: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the voxels above each volume's minimum, which becomes 0 itself; a constant
    volume becomes 0 everywhere."""
    axes = (1, 2, 3, 4)
    inside = images > images.amin(axes, keepdim=True)
    count = inside.sum(axes, keepdim=True).clamp(min=1)
    mean = (images * inside).sum(axes, keepdim=True) / count
    deviation = (((images - mean) * inside).square().sum(axes, keepdim=True) / count).sqrt()
    return torch.where(inside, (images - mean) / deviation.clamp(min=1e-6), 0.0)
