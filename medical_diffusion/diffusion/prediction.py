"""What the network predicts, and how one prediction becomes another.

With ``x_t = a x_0 + s noise`` and ``a² + s² = 1``:

=================  ===================  ======================  =======================
prediction type    target               x_0                     noise
=================  ===================  ======================  =======================
``epsilon``        noise                (x_t - s out) / a       out
``sample``         x_0                  out                     (x_t - a out) / s
``v_prediction``   a noise - s x_0      a x_t - s out           s x_t + a out
=================  ===================  ======================  =======================

Sources: Ho et al. 2020 (noise), Salimans & Ho 2022, Section 4 and Appendix D (x_0 and v).
``a`` and ``s`` are numbers or tensors that broadcast against ``x_t``.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from medical_diffusion.errors import UserError, did_you_mean

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

Scale: TypeAlias = "Tensor | float"


def check_prediction_type(prediction_type: str) -> str:
    """Returns the name unchanged.

    Raises:
        UserError: unknown prediction type.
    """
    if prediction_type not in PREDICTION_TYPES:
        remedy = did_you_mean(str(prediction_type), PREDICTION_TYPES)
        raise UserError("the prediction type must be a known one", prediction_type, remedy)
    return prediction_type


def prediction_target(prediction_type: str, x0: Tensor, noise: Tensor, a: Scale, s: Scale) -> Tensor:
    """What a perfect network returns for ``x_t = a x0 + s noise``."""
    if check_prediction_type(prediction_type) == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    return a * noise - s * x0


def predicted_x0(prediction_type: str, output: Tensor, x_t: Tensor, a: Scale, s: Scale) -> Tensor:
    """The network's output as an estimate of ``x_0``."""
    if check_prediction_type(prediction_type) == "epsilon":
        return (x_t - s * output) / a
    if prediction_type == "sample":
        return output
    return a * x_t - s * output


def predicted_noise(prediction_type: str, output: Tensor, x_t: Tensor, a: Scale, s: Scale) -> Tensor:
    """The network's output as an estimate of the noise."""
    if check_prediction_type(prediction_type) == "epsilon":
        return output
    if prediction_type == "sample":
        return (x_t - a * output) / s
    return s * x_t + a * output
