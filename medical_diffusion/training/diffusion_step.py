"""One training step of stage 2: predict the noise that was added to whitened latents (Ho et al. 2020, eq. 14, with L1).

t ~ U{0, ..., T-1},  e ~ N(0, 1),  z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e,  loss = |target(z_0, e, t) - f(z_t, t)|
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

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
        network: the denoising network, called as ``network(noisy, timesteps)``.
        optimizer: its optimiser.
        scheduler: noise schedule with ``num_train_timesteps``, ``add_noise`` and ``training_target(x0, noise, t)``.
        inferer: how the network is called; default :class:`NoisePredictionInferer`.
        loss_function: of (prediction, target); the paper's L1 by default.
        ema_decay: see :class:`ExponentialMovingAverage`.
        accumulation: the batch is cut into this many parts whose gradients are added: the same gradient, less memory.
        max_gradient_norm: clips the gradient.
        amp: ``"none"``, ``"bfloat16"`` or ``"float16"`` (with loss scaling).

    Raises:
        UserError: unknown ``amp``.
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
    ) -> None:
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

    def __call__(self, latents: Tensor, step: int) -> dict[str, Tensor]:
        """Train on ``latents`` (B, C, h, w, d); returns detached scalars ``loss``, ``gradient_norm``, ``ema_decay``."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        noise, timesteps = self.draw(latents)
        total = torch.zeros((), device=latents.device)
        parts = min(self.accumulation, len(latents))
        for z, e, t in zip(latents.chunk(parts), noise.chunk(parts), timesteps.chunk(parts), strict=True):
            share = self.loss(self.network, z, e, t) * (len(z) / len(latents))
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

    def loss(self, network: nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean loss of ``network`` on given noise and timesteps."""
        with autocast(latents.device, self.amp_dtype):
            prediction = self.inferer(inputs=latents, network=network, noise=noise, timesteps=timesteps)
        target = self.scheduler.training_target(latents, noise, timesteps)
        return self.loss_function(prediction.float(), target.float())

    @torch.no_grad()
    def validate(self, latents: Tensor, seed: int) -> float:
        """Loss of the averaged weights on held-out ``latents``, with noise and timesteps fixed by ``seed``."""
        noise, timesteps = self.draw(latents, torch.Generator().manual_seed(seed))
        return float(self.loss(self.ema.network, latents, noise, timesteps))

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
