"""One training step of the autoencoder (stage 1 of both papers): reconstruction, adversarial and bottleneck terms.

The autoencoder runs forward once. Its reconstruction r is cut from the graph, every term is differentiated down to r,
and the summed gradient ∂L/∂r enters the autoencoder in one backward pass. The discriminators are taken one after the
other, so that only one of their graphs exists at a time, and each evaluates r once: that graph gives

    ∂/∂r [ w_adv · hinge_G(D(r)) + w_fm · FM(D(x), D(r)) ]     (no gradient for D's weights is computed), and then
    ∂/∂θ_D hinge_D(D(x), D(r))                                 (no gradient for r is computed).

Terms and weights (paper): L1 × 4, perceptual × 4 on one random slice per volume, hinge × 1 for each discriminator,
feature matching × 4, the bottleneck's loss as it weights it. Structural and spectral terms take the place of the
perceptual one where no pre-trained network is at hand. The generator's adversarial terms start at
``discriminator_start`` and rise linearly over ``discriminator_warmup`` steps, while the discriminators learn at full
rate from the start: a fresh discriminator at full weight is what drives the published code into NaN and collapse.

Under deep supervision (Medfusion) the autoencoder gives a second reconstruction at half resolution. Each reconstruction
term is then the mean of its values at both resolutions, against the image averaged over the voxels that become one; the
discriminators see the full resolution alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from medical_diffusion.errors import UserError
from medical_diffusion.losses.adversarial import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from medical_diffusion.networks.autoencoder import Autoencoder
from medical_diffusion.networks.conv import channels_last
from medical_diffusion.networks.discriminators import PatchDiscriminator
from medical_diffusion.precision import amp_dtype, autocast
from medical_diffusion.training.distributed import average_gradients

Loss = Callable[[Tensor, Tensor], Tensor]


class AutoencoderStep:
    """``step(images, step_number)`` updates autoencoder and discriminators and returns the detached loss terms.

    Args:
        autoencoder: network to train; a vector quantiser updates its codebook in the forward pass.
        optimizer: of the autoencoder (paper: Adam, betas 0.5 and 0.9).
        slice_discriminator: judges one random slice per volume, at the same index in image and reconstruction.
        volume_discriminator: judges the whole volume; leave it out at depth 1, where a slice is the whole image.
        discriminator_optimizer: of both discriminators; needed where there is one.
        structural_loss: ``(reconstruction, images) -> scalar`` on the volumes, or None.
        spectral_loss: ``(reconstruction, images) -> scalar`` on the volumes, which keeps fine texture, or None.
        perceptual_loss: ``(reconstruction, images) -> scalar`` on slices (B, C, H, W, 1), or None.
        pixel_weight: factor of the L1 loss.
        structural_weight: factor of the structural loss.
        spectral_weight: factor of the spectral loss.
        perceptual_weight: factor of the perceptual loss.
        adversarial_weight: factor of each discriminator's hinge loss in the autoencoder's loss.
        feature_matching_weight: factor of each discriminator's feature-matching loss.
        adversarial_limit: largest norm of the gradient that one discriminator's terms send into the reconstruction, as
            a multiple of that of the reconstruction terms; larger ones are scaled down (after Esser et al. 2021,
            equation 7, which also scales up). None limits nothing, as in the paper.
        discriminator_start: first step at which the discriminators run (paper: about 5000).
        discriminator_warmup: steps over which the adversarial terms rise from 0 to their weight.
        spectral_warmup: first steps, over which the spectral term rises from 0 to its weight. It is the same for an
            image and its negative, so the other terms must settle the sign of the contrast before it counts.
        max_gradient_norm: clips the gradient, of autoencoder and discriminators separately.
        amp: ``"none"``, ``"bfloat16"`` (CPU and GPU) or ``"float16"`` (with loss scaling).

    Raises:
        UserError: an option out of range, discriminators without optimiser, or an unknown ``amp``.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        optimizer: Optimizer,
        slice_discriminator: PatchDiscriminator | None = None,
        volume_discriminator: PatchDiscriminator | None = None,
        discriminator_optimizer: Optimizer | None = None,
        structural_loss: Loss | None = None,
        spectral_loss: Loss | None = None,
        perceptual_loss: Loss | None = None,
        pixel_weight: float = 4.0,
        structural_weight: float = 1.0,
        spectral_weight: float = 1.0,
        perceptual_weight: float = 4.0,
        adversarial_weight: float = 1.0,
        feature_matching_weight: float = 4.0,
        adversarial_limit: float | None = 0.5,
        discriminator_start: int = 5000,
        discriminator_warmup: int = 1000,
        spectral_warmup: int = 0,
        max_gradient_norm: float = 1.0,
        amp: str = "none",
    ) -> None:
        if discriminator_start < 0 or discriminator_warmup < 0:
            raise UserError(
                "discriminator_start and discriminator_warmup must not be negative",
                f"{discriminator_start} and {discriminator_warmup}",
            )
        if spectral_warmup < 0:
            raise UserError("spectral_warmup must not be negative", spectral_warmup)
        if max_gradient_norm <= 0:
            raise UserError("max_gradient_norm must be positive", max_gradient_norm)
        self.autoencoder, self.optimizer = autoencoder, optimizer
        self.discriminators: dict[str, PatchDiscriminator] = {}
        if slice_discriminator is not None:
            self.discriminators["slice_discriminator"] = slice_discriminator
        if volume_discriminator is not None:
            self.discriminators["volume_discriminator"] = volume_discriminator
        if self.discriminators and discriminator_optimizer is None:
            raise UserError("discriminators need a discriminator_optimizer", None, "Pass one over their parameters")
        self.discriminator_optimizer = discriminator_optimizer
        self.structural_loss, self.spectral_loss, self.perceptual_loss = structural_loss, spectral_loss, perceptual_loss
        self.pixel_weight, self.structural_weight = pixel_weight, structural_weight
        self.spectral_weight, self.perceptual_weight = spectral_weight, perceptual_weight
        self.adversarial_weight, self.feature_matching_weight = adversarial_weight, feature_matching_weight
        self.adversarial_limit = adversarial_limit
        self.discriminator_start, self.discriminator_warmup = discriminator_start, discriminator_warmup
        self.spectral_warmup, self.max_gradient_norm = spectral_warmup, max_gradient_norm
        self.amp_dtype = amp_dtype(amp)
        device = next(autoencoder.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp_dtype is torch.float16)

    def adversarial_ramp(self, step: int) -> float:
        """Factor of the adversarial terms: 0 before the start, 1 after the warm-up."""
        if not self.discriminators or step < self.discriminator_start:
            return 0.0
        return min(1.0, (step - self.discriminator_start + 1) / max(1, self.discriminator_warmup))

    def spectral_ramp(self, step: int) -> float:
        """Factor of the spectral term, 1 after the warm-up."""
        return min(1.0, (step + 1) / (self.spectral_warmup + 1))

    def __call__(self, images: Tensor, step: int, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            images: (B, C, H, W, D), about [-1, 1].
            step: number of the step, from 0, which decides whether the discriminators run.
            labels: classes of the images; reconstruction does not depend on them.

        Returns:
            Detached scalars: ``loss`` (the autoencoder's weighted sum), the unweighted terms ``pixel_loss``,
            ``structural_loss``, ``spectral_loss``, ``perceptual_loss``, ``bottleneck_loss`` (its weight included),
            ``adversarial_loss``, ``feature_matching_loss`` and ``discriminator_loss`` (summed over the discriminators,
            0 while they are off), the bottleneck's statistics of this batch (``codes_used`` and ``perplexity``, or
            ``kl``) and ``gradient_norm`` of the autoencoder before clipping. Values that are not finite are returned as
            they are: the caller decides.
        """
        images = channels_last(images)
        self.autoencoder.train()
        with autocast(images.device, self.amp_dtype):
            reconstructions, bottleneck = self.autoencoder.reconstruct(images)
        resolutions = [r.detach().float().requires_grad_() for r in reconstructions]
        r = resolutions[0]
        slice_index = torch.randint(images.shape[-1], (len(images),), device=images.device)

        terms = self._reconstruction_terms(resolutions, images, slice_index)
        weighted = (
            self.pixel_weight * terms["pixel_loss"]
            + self.structural_weight * terms["structural_loss"]
            + self.spectral_ramp(step) * self.spectral_weight * terms["spectral_loss"]
            + self.perceptual_weight * terms["perceptual_loss"]
        )
        gradients = torch.autograd.grad(self.scaler.scale(weighted), resolutions)
        gradient = gradients[0]
        limit = None if self.adversarial_limit is None else self.adversarial_limit * gradient.norm()
        terms = {name: term.detach() for name, term in terms.items()}
        loss = weighted.detach() + bottleneck.loss.detach()

        ramp = self.adversarial_ramp(step)
        zero = torch.zeros((), device=images.device)
        adversarial = dict.fromkeys(("adversarial_loss", "feature_matching_loss", "discriminator_loss"), zero)
        if ramp > 0:
            for name, discriminator in self.discriminators.items():
                index = slice_index if name == "slice_discriminator" else None
                for key, term in self._adversarial_terms(
                    discriminator, r, images, index, ramp, gradient, limit
                ).items():
                    adversarial[key] = adversarial[key] + term
            loss = loss + ramp * (
                self.adversarial_weight * adversarial["adversarial_loss"]
                + self.feature_matching_weight * adversarial["feature_matching_loss"]
            )
            assert self.discriminator_optimizer is not None
            self._update(self.discriminator_optimizer)

        # the bottleneck's loss joins here, so that the autoencoder is walked back once
        starts = [g.to(r.dtype) for g, r in zip(gradients, reconstructions, strict=True)]
        starts.append(self.scaler.scale(torch.ones_like(bottleneck.loss)))
        torch.autograd.backward((*reconstructions, bottleneck.loss), starts)
        gradient_norm = self._update(self.optimizer)
        self.scaler.update()
        return {
            "loss": loss,
            **terms,
            "bottleneck_loss": bottleneck.loss.detach(),
            **adversarial,
            **bottleneck.statistics,
            "gradient_norm": gradient_norm,
        }

    def _reconstruction_terms(
        self, resolutions: list[Tensor], images: Tensor, slice_index: Tensor
    ) -> dict[str, Tensor]:
        """The terms, averaged over the resolutions."""
        terms = []
        for r in resolutions:
            factor = [n // m for n, m in zip(images.shape[2:], r.shape[2:], strict=True)]
            target = images if max(factor) == 1 else F.avg_pool3d(images, factor)
            terms.append(self._terms_at(r, target, slice_index // factor[-1]))
        return {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}

    def _terms_at(self, r: Tensor, images: Tensor, slice_index: Tensor) -> dict[str, Tensor]:
        terms = {"pixel_loss": F.l1_loss(r, images)}
        terms |= dict.fromkeys(("structural_loss", "spectral_loss", "perceptual_loss"), r.new_zeros(()))
        if self.structural_loss is not None:
            terms["structural_loss"] = self.structural_loss(r, images)
        if self.spectral_loss is not None:
            terms["spectral_loss"] = self.spectral_loss(r, images)
        if self.perceptual_loss is not None:
            with autocast(images.device, self.amp_dtype):
                terms["perceptual_loss"] = self.perceptual_loss(_slices(r, slice_index), _slices(images, slice_index))
        return terms

    def _adversarial_terms(
        self,
        discriminator: PatchDiscriminator,
        r: Tensor,
        images: Tensor,
        slice_index: Tensor | None,
        ramp: float,
        gradient: Tensor,
        limit: Tensor | None,
    ) -> dict[str, Tensor]:
        """Terms of one discriminator: adds to ``gradient`` in place and to the gradients of its parameters."""
        discriminator.train()
        with autocast(images.device, self.amp_dtype):
            real_maps = discriminator(images if slice_index is None else _slices(images, slice_index))
            fake_maps = discriminator(r if slice_index is None else _slices(r, slice_index))
            adversarial = hinge_generator_loss(fake_maps[-1])
            matching = feature_matching_loss(real_maps[:-1], fake_maps[:-1])
            discriminator_loss = hinge_discriminator_loss(real_maps[-1], fake_maps[-1])
        wanted = ramp * (self.adversarial_weight * adversarial + self.feature_matching_weight * matching)
        (own,) = torch.autograd.grad(self.scaler.scale(wanted), r, retain_graph=True)
        if limit is not None:
            own *= (limit / own.norm().clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1.0)
        gradient += own
        # one side after the other, so that their weight gradients never lie side by side
        logits, parameters = (real_maps[-1], fake_maps[-1]), list(discriminator.parameters())
        sides = torch.autograd.grad(self.scaler.scale(discriminator_loss), logits)
        for side, side_gradient in zip(logits, sides, strict=True):
            torch.autograd.backward(side, side_gradient, inputs=parameters)
        return {
            "adversarial_loss": adversarial.detach(),
            "feature_matching_loss": matching.detach(),
            "discriminator_loss": discriminator_loss.detach(),
        }

    def _update(self, optimizer: Optimizer) -> Tensor:
        """Average over processes, clip, step, free the gradients; returns the norm before clipping."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        return norm

    def optimizers(self) -> list[Optimizer]:
        """Optimisers whose learning rates a schedule may scale."""
        return [o for o in (self.optimizer, self.discriminator_optimizer) if o is not None]

    def weights(self) -> dict[str, Tensor]:
        """What is saved for use: the autoencoder's parameters and buffers."""
        return self.autoencoder.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load what :meth:`weights` returned; discriminators and optimisers stay as they are."""
        self.autoencoder.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers and loss scaler: all that resuming needs."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            UserError: the state belongs to a step with other parts, such as other discriminators.
        """
        parts = self._parts()
        if set(state) != set(parts):
            raise UserError(
                f"the state of an autoencoder step must hold {', '.join(sorted(parts))}",
                ", ".join(sorted(map(str, state))),
                "It was saved with other discriminators: resume with the options of that run",
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"autoencoder": self.autoencoder, **self.discriminators, "optimizer": self.optimizer}
        if self.discriminator_optimizer is not None:
            parts["discriminator_optimizer"] = self.discriminator_optimizer
        return {**parts, "scaler": self.scaler}


def _slices(volumes: Tensor, index: Tensor) -> Tensor:
    """One slice along the depth of each volume: (B, C, H, W, D), (B,) → (B, C, H, W, 1)."""
    index = index.view(-1, 1, 1, 1, 1).expand(*volumes.shape[:-1], 1)
    return volumes.gather(-1, index)
