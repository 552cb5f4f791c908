"""Spectral loss: equal log amplitudes, at every spatial frequency and in every band of neighbouring frequencies.

    loss = 1/2 mean_k | A(x, k) - A(y, k) | + 1/2 mean_b | A(x, b) - A(y, b) |
    A(x, k) = 1/2 log(|F x(k)|² + eps²)             A(x, b) = 1/2 log(mean_{k in b} |F x(k)|² + eps²)

with the orthonormal Fourier transform F over the spatial axes and blocks b of 4 frequencies along each. The amplitudes
of images fall steeply with frequency, so L1 and L2 on voxels hardly notice missing fine detail: the logarithm weighs a
factor of two alike at every frequency (as in the log-magnitude loss on spectrograms, Yamamoto et al. 2020, Eq. 5).
Phase is left to the terms on voxels.

The first term alone blurs: texture that cannot be predicted has Rayleigh amplitudes, whose median, the best constant
guess under L1, holds ln 2 = 69 % of their mean power. A band's mean power hardly varies, so the second term asks for
all of it. It alone would accept a few strong waves, the grid of a decoder's stride, in place of texture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medical_diffusion.errors import UserError

BAND_WIDTH = 4
"""Neighbouring frequencies in a band, along each axis."""


class SpectralLoss(nn.Module):
    """Mean distance of the log amplitude spectra, of single frequencies and of bands.

    Args:
        epsilon: amplitude below which differences fade out, in intensity units. In the orthonormal transform white
            noise of standard deviation s has amplitude s at every frequency. The default is the rounding of an 8-bit
            image that fills [-1, 1]: 2 / 255 / sqrt(12).
    """

    def __init__(self, epsilon: float = 2e-3) -> None:
        super().__init__()
        if not epsilon > 0:
            raise UserError("epsilon must be positive", epsilon)
        self.epsilon = epsilon

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Scalar for two tensors ``(B, C, ...)``; axes of size 1 are not transformed.

        Raises:
            UserError: different shapes.
        """
        if reconstruction.shape != target.shape:
            raise UserError(
                "two images of the same shape are needed", (tuple(reconstruction.shape), tuple(target.shape))
            )
        axes = [axis for axis in range(2, target.ndim) if target.shape[axis] > 1]
        if not axes:
            return (reconstruction - target).abs().mean()
        powers = [_power(image, axes) for image in (reconstruction, target)]
        frequencies = self._distance(*powers)
        frequencies = frequencies * _half_spectrum_weights(target.shape, axes[-1]).to(frequencies)
        bands = self._distance(*(_band_means(power) for power in powers))
        return (frequencies.mean() + bands.mean()) / 2

    def _distance(self, power: Tensor, target: Tensor) -> Tensor:
        """Distance of log amplitudes."""
        return 0.5 * (torch.log(power + self.epsilon**2) - torch.log(target + self.epsilon**2)).abs()


def _power(image: Tensor, axes: list[int]) -> Tensor:
    """Power of the non-negative half of the spectrum."""
    # half precision has too few sizes in the transform and too few digits in the spectrum
    spectrum = torch.fft.rfftn(image.to(torch.promote_types(image.dtype, torch.float32)), dim=axes, norm="ortho")
    return spectrum.real**2 + spectrum.imag**2


def _band_means(power: Tensor) -> Tensor:
    """Mean power of each block of neighbouring frequencies, fewer at the end of an axis: (B, C, blocks...)."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[power.ndim - 2]
    width = [min(BAND_WIDTH, n) for n in power.shape[2:]]
    return pool(power, width, stride=width, ceil_mode=True, count_include_pad=False)


def _half_spectrum_weights(shape: torch.Size, axis: int) -> Tensor:
    """Weights of mean 1 along ``axis``: the real transform leaves out the mirror images of all but the end planes."""
    size = shape[axis]
    weights = torch.full((size // 2 + 1,), 2.0)
    weights[0] = 1
    if size % 2 == 0:
        weights[-1] = 1
    return (weights / weights.mean()).reshape([-1 if a == axis else 1 for a in range(len(shape))])
