"""One training step of stage 2: predict the noise that was added to whitened latents (Ho et al. 2020, eq. 14, with L1).

t ~ U{0, ..., T-1},  e ~ N(0, 1),  z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e,  loss = |target(z_0, e, t) - f(z_t, t)|

With classes, f(z_t, t, c) also gets the label c, which is replaced by the label "no class" with probability
``label_dropout``: one network learns both predictions that classifier-free guidance needs (Ho & Salimans 2022, alg. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.precision import amp_dtype, autocast
from medical_diffusion.training.distributed import average_gradients
from medical_diffusion.training.ema import ExponentialMovingAverage


class NoisePredictionInferer(Inferer):
    """Adds noise by the schedule and asks the network for its prediction (MONAI's place to change the computation).

    Args:
        scheduler: noise schedule with MONAI's ``add_noise(original_samples, noise, timesteps)``.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def __call__(
        self, inputs: Tensor, network: nn.Module, noise: Tensor, timesteps: Tensor, **conditions: Tensor
    ) -> Tensor:
        """Prediction of ``network`` for ``inputs`` (B, C, h, w, d) noised to ``timesteps`` (B,)."""
        noisy = self.scheduler.add_noise(original_samples=inputs, noise=noise, timesteps=timesteps)
        return network(noisy, timesteps, **conditions)


class DiffusionStep:
    """Forward, backward, clipping, optimiser and moving average of one step on a batch of latents.

    Args:
        network: the denoising network, called as ``network(noisy, timesteps)``, with ``class_labels`` where the data
            have labels; label ``network.num_classes`` means "no class".
        optimizer: its optimiser.
        scheduler: noise schedule with ``num_train_timesteps``, ``add_noise`` and ``training_target(x0, noise, t)``.
        inferer: how the network is called; default :class:`NoisePredictionInferer`.
        loss_function: of (prediction, target); the paper's L1 by default.
        ema_decay: see :class:`ExponentialMovingAverage`.
        accumulation: the batch is cut into this many parts whose gradients are added: the same gradient, less memory.
        max_gradient_norm: clips the gradient.
        amp: ``"none"``, ``"bfloat16"`` or ``"float16"`` (with loss scaling).
        label_dropout: probability with which a sample's label is replaced by "no class" (Medfusion: 0.5).

    Raises:
        UserError: unknown ``amp``, or ``label_dropout`` outside [0, 1] or with a network without classes.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        inferer: Inferer | None = None,
        loss_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        ema_decay: float = 0.9995,
        accumulation: int = 1,
        max_gradient_norm: float = 1.0,
        amp: str = "none",
        label_dropout: float = 0.0,
    ) -> None:
        if not 0.0 <= label_dropout <= 1.0:
            raise UserError("label_dropout must lie in [0, 1]", label_dropout, "Medfusion's is 0.5")
        self.null_label: int | None = getattr(network, "num_classes", None)
        if label_dropout > 0 and self.null_label is None:
            raise UserError(
                "label_dropout needs a network with classes",
                f"label_dropout {label_dropout:g}",
                "Build the network with num_classes, or leave label_dropout at 0",
            )
        self.label_dropout = label_dropout
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.inferer = inferer or NoisePredictionInferer(scheduler)
        self.loss_function = loss_function or nn.L1Loss()
        self.ema = ExponentialMovingAverage(network, ema_decay)
        self.accumulation = accumulation
        self.max_gradient_norm = max_gradient_norm
        self.amp_dtype = amp_dtype(amp)
        device = next(network.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp_dtype is torch.float16)

    def __call__(self, latents: Tensor, step: int, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on ``latents`` (B, C, h, w, d) with their ``labels`` (B,), if there are any.

        Returns detached scalars ``loss``, ``gradient_norm``, ``ema_decay``.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        noise, timesteps = self.draw(latents)
        labels = self.drop_labels(labels)
        total = torch.zeros((), device=latents.device)
        for z, e, t, c in self._parts(latents, noise, timesteps, labels):
            share = self.loss(self.network, z, e, t, c) * (len(z) / len(latents))
            self.scaler.scale(share).backward()
            total += share.detach()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        average_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        decay = self.ema.update(self.network)
        return {"loss": total, "gradient_norm": norm.detach(), "ema_decay": torch.tensor(decay)}

    def draw(self, latents: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Noise like ``latents`` and timesteps (B,), stratified over [0, T): a small batch covers the schedule."""
        device = generator.device if generator is not None else latents.device
        noise = torch.randn(latents.shape, device=device, generator=generator).to(latents)
        offset = torch.rand(1, device=device, generator=generator)
        strata = torch.randperm(len(latents), device=device, generator=generator)
        fractions = (strata + offset) / len(latents) % 1.0
        steps = self.scheduler.num_train_timesteps
        timesteps = (fractions * steps).long().clamp_(max=steps - 1)
        return noise, timesteps.to(latents.device)

    def drop_labels(self, labels: Tensor | None) -> Tensor | None:
        """``labels`` (B,), each replaced by "no class" with probability ``label_dropout``, drawn for each sample."""
        if labels is None or self.label_dropout == 0 or self.null_label is None:
            return labels
        dropped = torch.rand(len(labels), device=labels.device) < self.label_dropout
        return labels.masked_fill(dropped, self.null_label)

    def loss(
        self,
        network: nn.Module,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of ``network`` on given noise, timesteps and labels."""
        conditions = {} if labels is None else {"class_labels": labels}
        with autocast(latents.device, self.amp_dtype):
            prediction = self.inferer(inputs=latents, network=network, noise=noise, timesteps=timesteps, **conditions)
        target = self.scheduler.training_target(latents, noise, timesteps)
        return self.loss_function(prediction.float(), target.float())

    @torch.no_grad()
    def validate(self, latents: Tensor, seed: int, labels: Tensor | None = None) -> float:
        """Loss of the averaged weights on held-out ``latents``, with noise and timesteps fixed by ``seed``.

        No label of ``labels`` (B,) is dropped.
        """
        noise, timesteps = self.draw(latents, torch.Generator().manual_seed(seed))
        return float(self.loss(self.ema.network, latents, noise, timesteps, labels))

    def _parts(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The batch cut into ``accumulation`` parts."""
        count = min(self.accumulation, len(latents))
        classes = [None] * count if labels is None else labels.chunk(count)
        yield from zip(latents.chunk(count), noise.chunk(count), timesteps.chunk(count), classes, strict=False)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimisers whose learning rates a schedule may scale."""
        return [self.optimizer]

    def weights(self) -> dict[str, Tensor]:
        """What is saved for sampling: the averaged weights."""
        return self.ema.network.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.network.load_state_dict(weights)
        self.ema.network.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
