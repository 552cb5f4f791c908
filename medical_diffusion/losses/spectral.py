"""Spectral loss: equal log amplitudes at every spatial frequency.

    loss = mean_k | A(x, k) - A(y, k) |      A(x, k) = 1/2 log(|F x(k)|² + eps²)

with the orthonormal Fourier transform F over the spatial axes. The amplitudes of images fall steeply with frequency, so
L1 and L2 on voxels hardly notice missing fine detail: the logarithm weighs a factor of two alike at every frequency (as
in the log-magnitude loss on spectrograms, Yamamoto et al. 2020, Eq. 5). Phase is left to the terms on voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError


class SpectralLoss(nn.Module):
    """Mean distance of the log amplitude spectra.

    Args:
        epsilon: amplitude below which differences fade out, in intensity units. In the orthonormal transform white
            noise of standard deviation s has amplitude s at every frequency.
    """

    def __init__(self, epsilon: float = 1e-2) -> None:
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
        log_amplitudes = [self._log_amplitude(image, axes) for image in (reconstruction, target)]
        distance = (log_amplitudes[0] - log_amplitudes[1]).abs()
        return (distance * _half_spectrum_weights(target.shape, axes[-1]).to(distance)).mean()

    def _log_amplitude(self, image: Tensor, axes: list[int]) -> Tensor:
        # half precision has too few sizes in the transform and too few digits in the spectrum
        spectrum = torch.fft.rfftn(image.to(torch.promote_types(image.dtype, torch.float32)), dim=axes, norm="ortho")
        return 0.5 * torch.log(spectrum.real**2 + spectrum.imag**2 + self.epsilon**2)


def _half_spectrum_weights(shape: torch.Size, axis: int) -> Tensor:
    """Weights of mean 1 along ``axis``: the real transform leaves out the mirror images of all but the end planes."""
    size = shape[axis]
    weights = torch.full((size // 2 + 1,), 2.0)
    weights[0] = 1
    if size % 2 == 0:
        weights[-1] = 1
    return (weights / weights.mean()).reshape([-1 if a == axis else 1 for a in range(len(shape))])
