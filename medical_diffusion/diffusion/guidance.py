"""Classifier-free guidance: steer samples to a class (Ho and Salimans 2022, Eq. 6).

A network that was trained with some of its labels dropped knows both the conditional prediction c and the unconditional
one u. Guidance with scale w moves along their difference,

    f(x, t) = u + w (c - u),

so that w = 1 is the conditional network itself (the paper writes w - 1 for this w), w = 0 ignores the label, and w > 1
exaggerates the class at the cost of variety. At one x_t the noise, x_0 and v are affine functions of each other whose
coefficients do not depend on the prediction, so the same formula holds for all three targets and for every sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medical_diffusion.errors import UserError


class ClassifierFreeGuidance:
    """A network with labels and guidance bound to it, called as ``model(x, timesteps)`` by any sampler.

    Args:
        model: ``model(x, timesteps, class_labels=...)``.
        class_labels: class of each sample, int64 ``(B,)``.
        scale: w; 1 asks the conditional network alone and costs no second evaluation, nor does 0.
        null_label: label that stands for "no class".

    Raises:
        UserError: a negative scale.
    """

    def __init__(self, model: Callable[..., Tensor], class_labels: Tensor, scale: float, null_label: int) -> None:
        if scale < 0:
            raise UserError("guidance_scale must not be negative", scale, "1 is no guidance, 2 to 4 are usual")
        self.model, self.scale = model, float(scale)
        self.class_labels = class_labels
        self.null_labels = torch.full_like(class_labels, null_label)

    def __call__(self, x: Tensor, timesteps: Tensor, **kwargs: Any) -> Tensor:
        """Guided prediction for x ``(B, ...)`` at timesteps ``(B,)``; both predictions in one batch of 2 B."""
        labels = self.class_labels.to(x.device)
        if self.scale == 1.0:
            return self.model(x, timesteps, class_labels=labels, **kwargs)
        null_labels = self.null_labels.to(x.device)
        if self.scale == 0.0:
            return self.model(x, timesteps, class_labels=null_labels, **kwargs)
        both = self.model(
            torch.cat([x, x]),
            torch.cat([timesteps, timesteps]),
            class_labels=torch.cat([labels, null_labels]),
            **kwargs,
        )
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)
