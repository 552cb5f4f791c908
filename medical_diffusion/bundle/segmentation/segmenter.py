"""From a file of any size to a label map on its own grid: preprocess, slide the window, carry the result back.

The network's probabilities are taken to the original grid, linearly between voxel centres by the two affines, and the
most probable class is chosen there: so a map is as smooth on a fine grid as on a coarse one. One channel is carried
at a time, so that memory does not grow with classes x original voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import Compose, SpatialResample
from torch import Tensor, nn

from medical_diffusion.precision import amp_dtype, autocast

DARKEST = -1.0
SWEPT_AT_ONCE = 4
MOST_LOGITS = 1 << 28
"""Voxels x channels whose logits stay on the device: 1 GiB in full precision."""


@dataclass(frozen=True)
class Segmentation:
    """A label map on the grid of its image.

    Attributes:
        channels: (H, W, D) of channel numbers, 0 for the background.
        affine: voxel index to millimetres in RAS+, (4, 4).
    """

    channels: np.ndarray
    affine: np.ndarray


class Segmenter:
    """``segmenter(item) -> Segmentation`` for ``{"image": path}``.

    Args:
        network: (B, C, H, W, D) to logits.
        preprocessing: MONAI transforms from the path to a volume in [-1, 1].
        inferer: how the network is swept over a volume.
        device: where to compute.
        amp: see :mod:`medical_diffusion.precision`.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Sequence[Any],
        inferer: Inferer,
        device: torch.device,
        amp: str = "none",
    ) -> None:
        self.network, self.preprocessing, self.inferer = network, Compose(list(preprocessing)), inferer
        self.device, self.amp_dtype = device, amp_dtype(amp)

    def __call__(self, item: Mapping[str, Any]) -> Segmentation:
        image = self.preprocessing(dict(item))["image"]
        probabilities = self.probabilities(image)
        original = np.asarray(image.meta["original_affine"], dtype=np.float64)
        shape = [int(n) for n in image.meta["spatial_shape"]]
        return Segmentation(to_grid(probabilities, image.affine, original, shape), original)

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Of every channel, background included: (classes + 1, H, W, D) for a preprocessed volume (C, H, W, D)."""
        was_training = self.network.training
        self.network.eval()
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        with autocast(self.device, self.amp_dtype):
            logits = self.inferer(plain[None].float().to(self.device), self.network)
        self.network.train(was_training)
        return torch.softmax(logits[0].float(), dim=0).cpu()


def to_grid(probabilities: Tensor, affine: Tensor, target: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The most probable channel on another grid, uint8 (H, W, D).

    Args:
        probabilities: (channels, h, w, d).
        affine: of their grid.
        target, shape: affine and size of the grid to fill; beyond the edge the nearest value counts.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=True, dtype=torch.float32)
    best = torch.full(tuple(shape), -1.0)
    channels = torch.zeros(tuple(shape), dtype=torch.uint8)
    for number, channel in enumerate(probabilities):
        source = MetaTensor(channel[None], affine=affine)
        carried = resample(source, dst_affine=torch.as_tensor(target), spatial_size=list(shape)).as_tensor()[0]
        better = carried > best
        best[better] = carried[better]
        channels[better] = number
    return channels.numpy()


def window_inferer(image_size: Sequence[int], overlap: float, channels: int = 2) -> SlidingWindowInferer:
    """MONAI's sliding window of the crops' size; windows are blended by a Gaussian, so that seams do not show.

    Args:
        image_size: of the windows.
        overlap: of neighbours, as a share of their size.
        channels: of the logits; from ``MOST_LOGITS`` on those of the whole volume lie in the memory of the CPU.
    """
    return SlidingWindowInferer(
        roi_size=tuple(image_size),
        sw_batch_size=SWEPT_AT_ONCE,
        overlap=overlap,
        mode="gaussian",
        padding_mode="constant",
        cval=DARKEST,
        cpu_thresh=MOST_LOGITS // channels,
    )
