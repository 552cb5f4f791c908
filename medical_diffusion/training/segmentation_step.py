"""One training step of fine-tuning: cross-entropy + Dice on the channels of a segmentation network (the paper's loss).

loss = CE(f(x), y) + 1 - mean over classes of 2 |p_c y_c| / (|p_c| + |y_c|), with p = softmax of f(x) and the sums over
the whole batch, so that a crop without a class does not count as a failure. The background enters the cross-entropy
alone. No layer is frozen; layers that came from a pre-training may learn at a lower rate (:func:`parameter_groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.precision import amp_dtype, autocast
from medical_diffusion.training.distributed import average_gradients


def parameter_groups(
    network: nn.Module, transferred: Collection[str], learning_rate: float, transferred_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser: layers that were transferred, at ``transferred_factor`` times the rate, and the others.

    Args:
        network: all of its parameters are trained.
        transferred: names in its state dict that came from a pre-training.
        learning_rate: of the others.
        transferred_factor: at least 0; at 0 they would be frozen, which is refused.

    Raises:
        UserError: ``transferred_factor`` is not positive.
    """
    if not transferred_factor > 0:
        rule = "transferred layers must learn too: their share of the learning rate must be positive"
        raise UserError(rule, transferred_factor)
    known = set(transferred)
    rates = {True: learning_rate * transferred_factor, False: learning_rate}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        groups[name in known].append(parameter)
    return [{"params": parameters, "lr": rates[key]} for key, parameters in groups.items() if parameters]


class SegmentationStep:
    """Forward, backward, clipping and optimiser on a batch of crops with their label maps.

    Args:
        network: (B, C, H, W, D) to logits (B, classes + 1, H, W, D).
        optimizer: its optimiser.
        loss_function: of (logits, label map (B, 1, H, W, D)); cross-entropy + Dice by default.
        max_gradient_norm: clips the gradient.
        amp: ``"none"``, ``"bfloat16"`` or ``"float16"`` (with loss scaling); the loss is in full precision.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        max_gradient_norm: float = 1.0,
        amp: str = "none",
    ) -> None:
        if max_gradient_norm <= 0:
            raise UserError("max_gradient_norm must be positive", max_gradient_norm)
        self.network, self.optimizer = network, optimizer
        self.loss_function = loss_function or dice_cross_entropy()
        self.max_gradient_norm = max_gradient_norm
        self.amp_dtype = amp_dtype(amp)
        device = next(network.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp_dtype is torch.float16)

    def __call__(self, images: Tensor, step: int, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on ``images`` (B, C, H, W, D) with ``labels`` (B, 1, H, W, D) of channel numbers.

        Returns detached scalars ``loss`` and ``gradient_norm`` (before clipping).
        """
        assert labels is not None
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, self.amp_dtype):
            logits = self.network(images)
        loss = self.loss_function(logits.float(), labels)
        self.scaler.scale(loss).backward()
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        average_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {"loss": loss.detach(), "gradient_norm": norm.detach()}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimisers whose learning rates a schedule may scale."""
        return [self.optimizer]

    def weights(self) -> dict[str, Tensor]:
        """What is saved for inference: the network's weights."""
        return self.network.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.network.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def dice_cross_entropy() -> DiceCELoss:
    """MONAI's cross-entropy + Dice, the Dice of the foreground classes over the batch."""
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
