"""Diagonal-Gaussian bottleneck of a KL autoencoder (Kingma & Welling 2014; Rombach et al. 2022, section 3.1).

The encoder gives mean m and log-variance v of each latent element. In training the decoder receives a draw
``z = m + exp(v / 2) e`` with ``e ~ N(0, 1)``, otherwise m itself. The distance from a standard normal,

    KL = 1/2 (m² + exp(v) - 1 - v)      nats per latent element,

is averaged over batch and elements and weighted by ``kl_weight``, beside reconstruction terms that are means as well.

*The weight.* Medfusion weights 1e-6 on sums: pixel errors summed over the image, KL summed over the latent. Between
means, that is 1e-6 times latent elements over image elements: 1.25e-7 for 8 channels at compression 8 x 8 of a grey
image. The default is 1e-6 between means. Either is so small that it only keeps the variance from vanishing and the mean
from running away; the scale of the latents is settled by whitening (``latent_normalization="standardize"``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.networks.bottleneck import Bottleneck, BottleneckOutput

#: limits of the log-variance (those of the latent-diffusion models): exp and its gradient stay finite
LOG_VARIANCE = (-30.0, 20.0)


class GaussianBottleneck(Bottleneck):
    """Gaussian bottleneck: (B, 2 x latent_channels, h, w, d), means first → latents (B, latent_channels, h, w, d).

    ``statistics`` holds ``kl``, the mean divergence in nats per latent element.

    Args:
        latent_channels: channels of the latent.
        kl_weight: factor of that mean divergence in the loss.

    Raises:
        UserError: an option out of range; in the call, a tensor with other channels.
    """

    moments = 2

    def __init__(self, latent_channels: int = 8, kl_weight: float = 1e-6) -> None:
        super().__init__()
        if isinstance(latent_channels, bool) or int(latent_channels) != latent_channels or latent_channels < 1:
            raise UserError("latent_channels must be a positive whole number", latent_channels)
        if kl_weight < 0:
            raise UserError("kl_weight must not be negative", kl_weight)
        self.latent_channels, self.kl_weight = int(latent_channels), kl_weight

    def forward(self, h: Tensor) -> BottleneckOutput:
        """A draw (in evaluation mode the mean) and the weighted divergence; computed in float32."""
        mean, log_variance = (part.float() for part in self._split(h))
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        return BottleneckOutput(latents.to(h.dtype), self.kl_weight * divergence, {"kl": divergence.detach()})

    def encode(self, h: Tensor) -> Tensor:
        """The posterior's mean."""
        return self._split(h)[0]

    def to_decoder(self, z: Tensor) -> Tensor:
        """The latent as it is."""
        return z

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        if h.dim() < 3 or h.shape[1] != 2 * self.latent_channels:
            raise UserError(f"mean and log-variance must be (B, {2 * self.latent_channels}, h, w, d)", tuple(h.shape))
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance
