"""Held-out figures of both stages: how well stage 1 reconstructs, how well stage 2 predicts the noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from medical_diffusion.data import LatentDataset
from medical_diffusion.evaluation import ReconstructionScore
from medical_diffusion.pictures import volume_grid
from medical_diffusion.training import DiffusionStep

PICTURED = 4
BASELINE = "baseline_"


class ReconstructionEvaluation:
    """PSNR, MSE, MS-SSIM and L1 of reconstructions of a data set, and how much of the codebook they use.

    Args:
        autoencoder: the network of stage 1.
        dataset: held-out volumes under ``image`` (C, H, W, D) in [-1, 1].
        device: where to compute.
        data_range: of the values.
    """

    def __init__(self, autoencoder: nn.Module, dataset: Dataset, device: torch.device, data_range: float = 2.0) -> None:
        self.autoencoder, self.dataset, self.device, self.data_range = autoencoder, dataset, device, data_range

    def __call__(self) -> dict[str, float]:
        """Means over the data set by name."""
        report = self.run()
        return {name: entry["mean"] for name, entry in report["reconstruction"].items()} | report["codebook"]

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Mean and standard deviation (None for one volume) of each figure, beside trilinear resampling."""
        training = self.autoencoder.training
        self.autoencoder.eval().to(self.device)
        score, used = ReconstructionScore(self.autoencoder.compression, self.data_range), []  # type: ignore[arg-type]
        for n in range(len(self.dataset)):  # type: ignore[arg-type]
            image = self._image(n)
            latent = self.autoencoder.encode(image)  # type: ignore[operator]
            quantised = self.autoencoder.bottleneck(latent)  # type: ignore[operator]
            used.append(quantised.indices.flatten())
            reconstruction = self.autoencoder.decode(quantised.latents).clamp(-1.0, 1.0)  # type: ignore[operator]
            score.update(reconstruction, image)
        self.autoencoder.train(training)
        counts = torch.bincount(torch.cat(used), minlength=self.autoencoder.bottleneck.num_codes).float()  # type: ignore
        share = counts / counts.sum()
        perplexity = torch.exp(-(share * share.clamp_min(1e-12).log()).sum())
        figures = {n: {"mean": s.mean, "std": s.std if s.count > 1 else None} for n, s in score.summary().items()}
        return {
            "volumes": len(self.dataset),  # type: ignore[arg-type]
            "reconstruction": {n: f for n, f in figures.items() if not n.startswith(BASELINE)},
            "trilinear_baseline": {n.removeprefix(BASELINE): f for n, f in figures.items() if n.startswith(BASELINE)},
            "codebook": {
                "codes_used": float((counts > 0).float().mean()),
                "perplexity": float(perplexity),
            },
        }

    @torch.no_grad()
    def picture(self) -> np.ndarray:
        """The first held-out volumes above their reconstructions."""
        images = [self._image(n) for n in range(min(PICTURED, len(self.dataset)))]  # type: ignore[arg-type]
        training = self.autoencoder.training
        self.autoencoder.eval()
        reconstructions = [self.autoencoder(image) for image in images]
        self.autoencoder.train(training)
        rows = [("real, held out", _arrays(images)), ("reconstructed", _arrays(reconstructions))]
        return volume_grid(rows, (-1.0, 1.0))

    def _image(self, n: int) -> torch.Tensor:
        image = torch.as_tensor(self.dataset[n]["image"])[None].to(self.device)
        return image.contiguous(memory_format=torch.channels_last_3d)


class NoiseEvaluation:
    """Held-out loss of stage 2 with fixed noise and timesteps.

    Args:
        step: of stage 2.
        dataset: latents of held-out volumes.
        device: where to compute.
        seed: of noise and timesteps.
        repeats: draws of noise and timesteps per latent.
    """

    def __init__(
        self, step: DiffusionStep, dataset: LatentDataset, device: torch.device, seed: int = 0, repeats: int = 4
    ) -> None:
        self.step, self.dataset, self.device, self.seed, self.repeats = step, dataset, device, seed, repeats

    def __call__(self) -> dict[str, float]:
        losses = []
        for n in range(len(self.dataset)):
            latents = self.dataset[n]["image"][None].to(self.device).repeat(self.repeats, 1, 1, 1, 1)
            losses.append(self.step.validate(latents, self.seed + n))
        return {"loss": float(np.mean(losses))}


def _arrays(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return [t[0, 0].float().cpu().numpy() for t in tensors]
