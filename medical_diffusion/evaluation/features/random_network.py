"""A convolutional network with fixed random weights: features without a download, for any modality, in 2D and 3D.

Random networks separate sets of images well where pre-trained ones know nothing of them (Naeem et al. 2020, Section
4.2, recommend them for images unlike ImageNet's). This one is a wavelet scattering (Bruna & Mallat 2013) with random
filters in place of wavelets: a pyramid of the image, halved per scale; at each scale

    u1 = |w1 * x|        u2 = |w2 * pool(u1)|        log root mean squares of both over all positions

with filters of 3 voxels an axis that sum to 0 in each channel, so that a scale answers to its own band of frequencies:
blur lowers the finest scales, noise lifts them, and u2 sees how textures and edges follow one another. Local means of
u1 and of the image on a coarse grid tell where structures lie. Logarithms give a weak band the same say as a strong
one; values below ``FLOOR``, a step of 8-bit images, do not count.

Weights are whole random numbers, centred exactly and scaled by operations that round alike everywhere, so every
machine has the same; their hash stands in the protocol.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional

from medical_diffusion.evaluation.features.extractor import FeatureExtractor

SEED = 0
SCALES = 4
FILTERS = 16
KERNEL = 3
SHORTEST_AXIS = 4
"""Voxels that an axis keeps: a shorter one is not halved."""
FLOOR = 2 / 255
LOCAL_FILTERS = 4
LOCAL_GRID = 2
IMAGE_GRID = 4
VERSION = 1
"""Of how features follow from the filters; raise it with any change, so that caches are not mixed."""


class RandomNetwork(FeatureExtractor):
    """Features of a random scattering network; 208 for grey images, 320 for grey volumes, at any size.

    Args:
        spatial_dims: 2 for images (depth 1), 3 for volumes.
        channels: of the images.
        seed: of the filters.
    """

    first: Tensor
    second: Tensor

    def __init__(self, spatial_dims: int, channels: int = 1, seed: int = SEED) -> None:
        super().__init__("random", spatial_dims, channels, {"seed": seed, "version": VERSION})
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("first", random_filters(FILTERS, channels, spatial_dims, generator))
        self.register_buffer("second", random_filters(FILTERS, FILTERS, spatial_dims, generator))
        digest = hashlib.sha256()
        for weights in (self.first, self.second):
            digest.update(weights.numpy().astype("<f4").tobytes())
        self.protocol["weights"] = digest.hexdigest()

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W, D)`` → ``(B, F)``: per scale both layers and the grid of the first, then the image's grid."""
        x = images.squeeze(-1) if self.spatial_dims == 2 else images
        found = [_grid_means(x, IMAGE_GRID)]
        for scale in range(SCALES):
            u1 = _convolve(x, self.first).abs()
            u2 = _convolve(_halve(u1), self.second)
            found += [_log_energy(u1), _log_energy(u2)]
            found.append(_log_level(_grid_means(u1[:, :LOCAL_FILTERS], LOCAL_GRID) + FLOOR))
            if scale < SCALES - 1:
                x = _halve(x)
        return torch.cat(found, dim=1)


def random_filters(count: int, channels: int, spatial_dims: int, generator: torch.Generator) -> Tensor:
    """Filters (count, channels, 3, ...) with sum 0 in each channel and norm 1: white noise keeps its strength."""
    shape = (count, channels, *[KERNEL] * spatial_dims)
    # whole numbers, and so are these: their sums and the sums of their squares are exact in any order
    weights = torch.randint(-(2**15), 2**15, shape, generator=generator).double().flatten(2)
    weights = weights * weights.shape[2] - weights.sum(2, keepdim=True)
    norms = weights.square().sum((1, 2), keepdim=True).sqrt()
    return (weights / norms).float().view(shape)


def _convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Same size, the border repeated."""
    axes = x.ndim - 2
    padded = functional.pad(x, [KERNEL // 2] * (2 * axes), mode="replicate")
    return functional.conv2d(padded, filters) if axes == 2 else functional.conv3d(padded, filters)


def _halve(x: Tensor) -> Tensor:
    """Means of neighbours along the axes that stay long enough."""
    stride = [2 if n // 2 >= SHORTEST_AXIS else 1 for n in x.shape[2:]]
    if max(stride) == 1:
        return x
    return functional.avg_pool2d(x, stride) if x.ndim == 4 else functional.avg_pool3d(x, stride)


def _log_energy(x: Tensor) -> Tensor:
    """Logarithm of the root mean square over positions, (B, C)."""
    return _log_level((x.square().flatten(2).mean(2) + FLOOR**2).sqrt())


def _log_level(x: Tensor) -> Tensor:
    """Logarithm, 0 in the middle between ``FLOOR`` and 1: KID's kernel knows where 0 is."""
    return x.log() - math.log(FLOOR) / 2


def _grid_means(x: Tensor, cells: int) -> Tensor:
    """Means over a grid of cells, (B, C x cells^axes)."""
    pool = functional.adaptive_avg_pool2d if x.ndim == 4 else functional.adaptive_avg_pool3d
    return pool(x, cells).flatten(1)
