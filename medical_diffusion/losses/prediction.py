"""Loss between what the diffusion UNet predicts and its target."""

from __future__ import annotations

from torch import nn

from medical_diffusion.errors import UserError, did_you_mean

LOSSES: dict[str, type[nn.Module]] = {"l1": nn.L1Loss, "mse": nn.MSELoss}


def prediction_loss(kind: str) -> nn.Module:
    """Mean distance of prediction and target: ``l1``, the papers', or ``mse``.

    What minimises a squared error is the mean of all targets that fit a noisy latent, and that is what every sampler
    takes a prediction for (Ho et al. 2020, equation 12). L1 asks for their median, which leaves out what is rare:
    samples vary less.

    Raises:
        UserError: another kind.
    """
    if kind not in LOSSES:
        raise UserError("diffusion_loss must be l1 or mse", kind, did_you_mean(str(kind), LOSSES))
    return LOSSES[kind]()
