"""Adversarial terms: hinge losses (Lim & Ye 2017) and feature matching (Salimans et al. 2016; Wang et al. 2018).

Logits are of any shape, one per patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medical_diffusion.errors import UserError


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """``mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake)))``, scalar; 2 for a discriminator that says 0."""
    return functional.relu(1 - real_logits).mean() + functional.relu(1 + fake_logits).mean()


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """``-mean(D(fake))``, scalar."""
    return -fake_logits.mean()


def feature_matching_loss(real_maps: Sequence[Tensor], fake_maps: Sequence[Tensor]) -> Tensor:
    """L1 distance of the discriminator's feature maps, averaged over the maps.

    Args:
        real_maps: the discriminator's intermediate maps of real images (without its logits); no gradient flows to them.
        fake_maps: those of the reconstructions, of the same shapes.

    Returns:
        scalar.

    Raises:
        UserError: no maps, or another number of them.
    """
    if not real_maps or len(real_maps) != len(fake_maps):
        raise UserError(
            "feature matching needs the same number of maps of real and reconstructed images, at least one",
            (len(real_maps), len(fake_maps)),
        )
    distances = [(fake - real.detach()).abs().mean() for real, fake in zip(real_maps, fake_maps, strict=True)]
    return torch.stack(distances).mean()
