"""One step of pre-training without labels: reconstruct the blocks of a volume that were hidden.

``masked`` (the default): 70 % of the volume is hidden in large blocks, and the loss is the mean absolute error of the
hidden voxels, each volume's divided by its own standard deviation,

    loss = mean_hidden |f(x_hidden) - x| / sd(x),

so that a volume of low contrast weighs as much as one of high contrast, and a nearly empty block does not weigh more
than its voxels do (a normalisation block by block would enlarge the noise of air). Rates warm up and fall along a
cosine; encoder and decoder are both learnt. After He et al. 2022 and Xie et al. 2022 (SimMIM: absolute error, high
ratio, large blocks), and for volumes Chen et al. 2023 and Wald et al. 2025 (a convolutional decoder transfers too).

``paper`` (Khader et al. 2023, Methods, Swin UNETR): random patches are hidden, then the volume is flipped at random
along its two in-plane axes, and the loss compares whole volumes, |f - x| + (1 - MS-SSIM); AdamW at 1e-3 with weight
decay 0.01 and a constant rate. The paper states no ratio: 30 % is that of Swin UNETR's own inpainting task (Tang et al.
2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from medical_diffusion.data.augmentation import RandomFlips
from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.losses.ssim import StructuralLoss
from medical_diffusion.precision import amp_dtype, autocast
from medical_diffusion.training.distributed import average_gradients
from medical_diffusion.training.masking import block_size, hide, random_block_mask

SMALLEST_DEVIATION = 0.05
"""Of values in [-1, 1]: a crop of almost nothing but air does not weigh more than this allows."""


@dataclass(frozen=True)
class PretextObjective:
    """What pre-training asks for, and the schedule that belongs to it.

    Args:
        name: ``masked`` or ``paper``.
        mask_ratio: share of hidden blocks.
        warmup, decay: shares of the run over which the learning rate rises, and falls along a cosine.
    """

    name: str
    mask_ratio: float
    warmup: float
    decay: float


OBJECTIVES = {
    "masked": PretextObjective("masked", mask_ratio=0.7, warmup=0.1, decay=0.9),
    "paper": PretextObjective("paper", mask_ratio=0.3, warmup=0.0, decay=0.0),
}


def pretext_objective(
    name: str, mask_ratio: float | None = None, warmup: float | None = None, decay: float | None = None
) -> PretextObjective:
    """The objective called ``name``, with the fields that are not None in place of its own.

    Raises:
        UserError: unknown name, or a field outside its range.
    """
    if name not in OBJECTIVES:
        raise UserError("objective must be a known one", name, did_you_mean(name, OBJECTIVES))
    changes = {"mask_ratio": mask_ratio, "warmup": warmup, "decay": decay}
    objective = replace(OBJECTIVES[name], **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
    if objective.warmup + objective.decay > 1.0:
        raise UserError(
            "warm-up and decay of the learning rate must fit into the run: their shares add up to at most 1",
            f"{objective.warmup:g} and {objective.decay:g}",
        )
    return objective


class PretrainStep:
    """``step(images, step_number)`` hides, reconstructs and updates; returns the detached loss terms.

    Args:
        network: (B, C, H, W, D) to the same shape.
        image_size: voxels (H, W, D) of the batches.
        optimizer: its optimiser (paper: AdamW, 1e-3, weight decay 0.01); None where nothing is trained.
        objective: see :func:`pretext_objective`.
        mask_block: voxels of a hidden block, one number or three.
        mask_fill: ``noise`` or ``mean``, see :func:`medical_diffusion.training.masking.hide`.
        flip_axes: axes of random flips, after hiding (0 = H, 1 = W, 2 = D).
        inferer: how the network is called, ``inferer(inputs, network)``; MONAI's SimpleInferer by default.
        loss_function: error of each voxel, ``(reconstruction, images) -> (B, C, H, W, D)``; absolute by default.
        accumulation: parts that a batch is cut into, whose gradients are added.
        max_gradient_norm: clips the gradient.
        amp: ``"none"``, ``"bfloat16"`` or ``"float16"`` (with loss scaling).

    Raises:
        UserError: an option out of range, or an image without room for two blocks.
    """

    def __init__(
        self,
        network: nn.Module,
        image_size: Sequence[int],
        optimizer: torch.optim.Optimizer | None = None,
        objective: PretextObjective = OBJECTIVES["masked"],
        mask_block: int | Sequence[int] = 16,
        mask_fill: str = "noise",
        flip_axes: Sequence[int] = (0, 1),
        inferer: Inferer | None = None,
        loss_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        accumulation: int = 1,
        max_gradient_norm: float = 1.0,
        amp: str = "none",
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.image_size, self.objective = tuple(image_size), objective
        self.block = block_size(image_size, mask_block)
        self.mask_fill, self.flips = mask_fill, RandomFlips(flip_axes)
        self.inferer = inferer or SimpleInferer()
        self.loss_function = loss_function or nn.L1Loss(reduction="none")
        self.accumulation, self.max_gradient_norm = accumulation, max_gradient_norm
        self.structural_loss = StructuralLoss(data_range=2.0) if objective.name == "paper" else None
        self.amp_dtype = amp_dtype(amp)
        device = next(network.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp_dtype is torch.float16)

    def __call__(self, images: Tensor, step: int, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on ``images`` (B, C, H, W, D) in about [-1, 1].

        Returns detached scalars ``loss``, its terms (``masked_loss``, or ``pixel_loss`` and ``structural_loss``) and
        ``gradient_norm``.
        """
        assert self.optimizer is not None
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        mask = random_block_mask(len(images), self.image_size, self.block, self.objective.mask_ratio, images.device)
        hidden = hide(images, mask, self.mask_fill)
        flipped = self.flips(torch.cat([hidden, images, mask.to(images.dtype)], dim=1))
        channels = images.shape[1]
        hidden, images, mask = flipped[:, :channels], flipped[:, channels:-1], flipped[:, -1:] > 0.5
        totals: dict[str, Tensor] = {}
        count = min(self.accumulation, len(images))
        for part in zip(hidden.chunk(count), images.chunk(count), mask.chunk(count), strict=True):
            share = len(part[0]) / len(images)
            terms = self.terms(*part)
            loss = torch.stack(list(terms.values())).sum() * share
            self.scaler.scale(loss).backward()
            for name, value in {"loss": loss, **{k: v * share for k, v in terms.items()}}.items():
                totals[name] = totals.get(name, torch.zeros_like(loss)) + value.detach()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        average_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**totals, "gradient_norm": norm.detach()}

    def terms(self, hidden: Tensor, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Terms of the loss for a batch, its hidden form and its mask (B, 1, H, W, D)."""
        return self._terms_of(self.reconstruct(hidden), images, mask)

    def _terms_of(self, reconstructed: Tensor, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if self.structural_loss is not None:
            return {
                "pixel_loss": self.loss_function(reconstructed, images).mean(),
                "structural_loss": self.structural_loss(reconstructed, images),
            }
        deviation = images.flatten(1).std(1).clamp_min(SMALLEST_DEVIATION)
        return {"masked_loss": (self.hidden_error(reconstructed, images, mask) / deviation).mean()}

    def hidden_error(self, reconstructed: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean error (B,) of the voxels where ``mask`` (B, 1, H, W, D) is True."""
        weight = mask.to(images.dtype)
        error = (self.loss_function(reconstructed, images) * weight).flatten(1).sum(1)
        return error / (weight.flatten(1).sum(1) * images.shape[1])

    def reconstruct(self, hidden: Tensor) -> Tensor:
        """The network's answer (B, C, H, W, D) in float32."""
        with autocast(hidden.device, self.amp_dtype):
            return self.inferer(hidden, self.network).float()

    @torch.no_grad()
    def validate(self, images: Tensor, seed: int) -> dict[str, float]:
        """Figures of held-out ``images`` under masks and noise that ``seed`` fixes, without flips.

        ``loss`` as in training; ``hidden_error``, the mean error of the hidden voxels, and ``mean_fill_error``, that of
        filling them with the mean of the visible ones: what is below it was learnt.
        """
        hidden, mask = self.draw(images, seed)
        training = self.network.training
        self.network.eval()
        reconstructed = self.reconstruct(hidden)
        self.network.train(training)
        return {
            "loss": float(torch.stack(list(self._terms_of(reconstructed, images, mask).values())).sum()),
            "hidden_error": float(self.hidden_error(reconstructed, images, mask).mean()),
            "mean_fill_error": float(self.hidden_error(hide(images, mask, "mean"), images, mask).mean()),
        }

    def draw(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """``images`` with hidden blocks, and the mask (B, 1, H, W, D), both fixed by ``seed`` on any device."""
        generator = torch.Generator().manual_seed(seed)
        ratio = self.objective.mask_ratio
        mask = random_block_mask(len(images), self.image_size, self.block, ratio, images.device, generator)
        return hide(images, mask, self.mask_fill, generator), mask

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimisers whose learning rates a schedule may scale."""
        return [] if self.optimizer is None else [self.optimizer]

    def weights(self) -> dict[str, Tensor]:
        """What is saved for transfer: encoder, decoder and output layer."""
        return self.network.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load what :meth:`weights` returned."""
        self.network.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser and loss scaler: all that resuming needs."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}
