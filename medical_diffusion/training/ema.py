"""Exponential moving average of a network's weights.

After each optimiser step n = 1, 2, ... the average follows ``m <- d_n m + (1 - d_n) w`` with the ramp
``d_n = min(decay, (1 + n) / (10 + n))``: a short run averages over its own length, a long one over ``1 / (1 - decay)``
steps. The published run copied the weights until step 2000 and then averaged every tenth step with 0.995, which is
0.9995 a step; the ramp takes the place of that fixed warm-up.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError

RAMP_STEPS = 10


class ExponentialMovingAverage:
    """Keeps an averaged copy of ``network`` in ``self.network`` (evaluation mode, no gradients).

    Args:
        network: the network that is trained.
        decay: upper bound of the decay per optimiser step, in [0, 1).

    Raises:
        UserError: ``decay`` outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.9995) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError("ema_decay must lie in [0, 1)", decay, "The paper's is 0.9995 a step")
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> float:
        """Take in the weights of ``network`` after an optimiser step; returns the decay that was used."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (RAMP_STEPS + self.updates))
        averaged: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
        for mean, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            mean.copy_(buffer)
        return decay

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.updates = int(state["updates"])
