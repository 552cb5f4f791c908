"""Seeds to volumes: noise by seed, reverse diffusion on latents, decoding. One generator a seed: no sample depends on
its batch (the idea of EDM2's image generation, Karras et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.engines import Evaluator
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medical_diffusion.diffusion import ClassifierFreeGuidance, noise_for_seeds
from medical_diffusion.errors import UserError
from medical_diffusion.precision import amp_dtype, autocast
from medical_diffusion.synthesis.class_labels import ClassLabels
from medical_diffusion.synthesis.writer import SampleWriter


class SeedDataset(Dataset):
    """The seeds still to be drawn.

    Args:
        data: seeds.
        is_written: tells which of them are done already.
    """

    def __init__(self, data: Sequence[int], is_written: Callable[[int], bool] | None = None) -> None:
        self.seeds = [seed for seed in data if is_written is None or not is_written(seed)]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> int:
        return self.seeds[index]


class LatentSampler(Inferer):
    """Draws volumes by seed.

    Args:
        autoencoder: decodes whitened latents with ``decode_latents``.
        sampler: reverse diffusion with ``sample(model, noise, ...)``.
        latent_shape: (channels, h, w, d).
        num_steps: steps of the sampler; None takes all that it was trained with.
        amp: ``"none"``, or ``"bfloat16"`` or ``"float16"`` for the denoising network; decoding is in float32.
        class_labels: class of each seed; None for a network without classes.
        guidance_scale: of classifier-free guidance; 1 is none.

    Raises:
        UserError: guidance without classes.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        sampler: Any,
        latent_shape: Sequence[int],
        num_steps: int | None = None,
        amp: str = "none",
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        self.autoencoder, self.sampler, self.latent_shape = autoencoder, sampler, tuple(latent_shape)
        self.num_steps = num_steps
        self.amp_dtype = amp_dtype(amp)
        self.class_labels, self.guidance_scale = class_labels or ClassLabels(), guidance_scale
        if guidance_scale != 1.0 and not self.class_labels.names:
            raise UserError(
                "guidance needs a network that was trained with labels",
                f"guidance_scale {guidance_scale:g}",
                "Leave it at 1, or train with labels (--datalist or --class_folders)",
            )

    @torch.no_grad()
    def __call__(
        self,
        inputs: Sequence[int],
        network: nn.Module,
        progress: Callable[[Any], Any] | None = None,
        class_label: int | None = None,
    ) -> Tensor:
        """Volumes (B, C, H, W, D) in [-1, 1] for the seeds ``inputs``, by the denoising ``network``.

        ``class_label`` overrides the classes of the seeds.
        """
        network.eval()
        self.autoencoder.eval()
        device = next(network.parameters()).device
        noise, generators = noise_for_seeds([int(seed) for seed in inputs], self.latent_shape, device=device)
        model = self._conditioned(network, inputs, class_label, device)
        with autocast(device, self.amp_dtype):
            latents = self.sampler.sample(
                model, noise, num_steps=self.num_steps, generators=generators, progress=progress
            )
        volumes = [self.autoencoder.decode_latents(z[None].float())[0] for z in latents]  # type: ignore[operator]
        return torch.stack(volumes).float().clamp(-1.0, 1.0)

    def _conditioned(
        self, network: nn.Module, seeds: Sequence[int], class_label: int | None, device: torch.device
    ) -> Callable[..., Tensor]:
        if not self.class_labels.names:
            return network
        labels = [self.class_labels.of(int(seed)) if class_label is None else class_label for seed in seeds]
        null_label = len(self.class_labels.names)
        return ClassifierFreeGuidance(network, torch.tensor(labels, device=device), self.guidance_scale, null_label)


class SynthesisEvaluator(Evaluator):
    """MONAI engine that draws and writes volumes batch by batch.

    Args:
        device: where to compute.
        val_data_loader: loader of seeds.
        network: the denoising network.
        inferer: a :class:`LatentSampler`.
        writer: writes each volume as soon as it is drawn, so that an interrupted run continues.
        val_handlers: MONAI or ignite handlers.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: DataLoader,
        network: nn.Module,
        inferer: LatentSampler,
        writer: SampleWriter,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device), val_data_loader=val_data_loader, decollate=False, val_handlers=val_handlers
        )
        self.network, self.inferer, self.writer = network, inferer, writer

    def run(self, global_epoch: int = 1) -> None:
        """Draw every seed of the loader; does nothing when all are written."""
        total = len(self.data_loader.dataset)
        if total == 0:
            return
        self.network.to(self.state.device)
        self.inferer.autoencoder.to(self.state.device)
        with tqdm(total=total, desc="sampling", unit="volume") as self._bar:
            super().run(global_epoch)

    def _iteration(self, engine: Any, batchdata: Tensor) -> dict[str, Tensor]:
        seeds = [int(seed) for seed in batchdata]

        def steps(timesteps: Any) -> Any:
            return tqdm(timesteps, desc=f"seeds {seeds[0]} to {seeds[-1]}", unit="step", leave=False)

        volumes = self.inferer(seeds, self.network, progress=steps)
        for seed, volume in zip(seeds, volumes, strict=True):
            self.writer.write(seed, volume)
        self._bar.update(len(seeds))
        return {"image": volumes}
