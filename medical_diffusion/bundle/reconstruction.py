"""Held-out figures of both stages: how well stage 1 reconstructs, how well stage 2 predicts the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from medical_diffusion.data import LatentDataset
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation import ReconstructionScore
from medical_diffusion.losses.perceptual import MIN_PLANE, load_lpips, lpips_of_volumes
from medical_diffusion.pictures import volume_grid
from medical_diffusion.training import DiffusionStep

PICTURED = 4
BASELINE = "baseline_"


class ReconstructionEvaluation:
    """PSNR, MSE, MS-SSIM, LPIPS and sharpness of reconstructions of a data set, and how much of a codebook they use.

    LPIPS is measured where the extra ``perceptual`` is installed and its weights lie on this machine.

    Args:
        autoencoder: the network of stage 1, or an external one.
        dataset: held-out volumes under ``image`` (C, H, W, D) in [-1, 1].
        device: where to compute.
        data_range: of the values.
    """

    def __init__(self, autoencoder: nn.Module, dataset: Dataset, device: torch.device, data_range: float = 2.0) -> None:
        self.autoencoder, self.dataset, self.device, self.data_range = autoencoder, dataset, device, data_range

    def __call__(self) -> dict[str, float]:
        """Means over the data set by name, without LPIPS, which takes long."""
        report = self.run(perceptual=False)
        return {name: entry["mean"] for name, entry in report["reconstruction"].items()} | report.get("codebook", {})

    @torch.no_grad()
    def run(self, perceptual: bool = True) -> dict[str, Any]:
        """Mean and standard deviation of each figure, beside trilinear resampling.

        The deviation is None for a single volume and for ``high_frequency_ratio``, which is one ratio for all. All
        channels count. The part ``codebook`` is there only where the bottleneck has one, the part ``absent`` where a
        figure was wanted and not to be had: why, by its name.
        """
        training = self.autoencoder.training
        self.autoencoder.eval().to(self.device)
        lpips, reason = self._lpips() if perceptual else (None, None)
        score = ReconstructionScore(self.autoencoder.compression, self.data_range, lpips)  # type: ignore[arg-type]
        used: list[Tensor] = []
        for n in range(len(self.dataset)):  # type: ignore[arg-type]
            image = self._image(n)
            reconstructions, bottleneck = self.autoencoder.reconstruct(image)  # type: ignore[operator]
            if bottleneck.indices is not None:
                used.append(bottleneck.indices.flatten())
            score.update(reconstructions[0].clamp(-1.0, 1.0), image)
        self.autoencoder.train(training)
        figures = {n: {"mean": s.mean, "std": None if math.isnan(s.std) else s.std} for n, s in score.summary().items()}
        report: dict[str, Any] = {
            "volumes": len(self.dataset),  # type: ignore[arg-type]
            "reconstruction": {n: f for n, f in figures.items() if not n.startswith(BASELINE)},
            "trilinear_baseline": {n.removeprefix(BASELINE): f for n, f in figures.items() if n.startswith(BASELINE)},
        }
        if reason:
            report["absent"] = {"lpips": reason}
        if used:
            report["codebook"] = _codebook_use(torch.cat(used), self.autoencoder.bottleneck.num_codes)  # type: ignore
        return report

    def _lpips(self) -> tuple[Callable[[Tensor, Tensor], Tensor] | None, str | None]:
        """LPIPS of two batches, or why there is none."""
        plane = self._image(0).shape[2:4]
        if min(plane) < MIN_PLANE:
            return None, f"planes of {plane[0]} x {plane[1]} pixels are below LPIPS's {MIN_PLANE} x {MIN_PLANE}"
        try:
            network = load_lpips(download=False).to(self.device)
        except UserError as error:
            return None, error.rule
        return partial(lpips_of_volumes, network), None

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
            item = self.dataset[n]
            latents = item["image"][None].to(self.device).repeat(self.repeats, 1, 1, 1, 1)
            labels = item["class_label"].to(self.device).repeat(self.repeats) if "class_label" in item else None
            losses.append(self.step.validate(latents, self.seed + n, labels))
        return {"loss": float(np.mean(losses))}


def _codebook_use(indices: Tensor, num_codes: int) -> dict[str, float]:
    """Share of the codes in use, and exp of the entropy of their use."""
    counts = torch.bincount(indices, minlength=num_codes).float()
    perplexity = torch.exp(torch.special.entr(counts / counts.sum()).sum())
    return {"codes_used": float((counts > 0).float().mean()), "perplexity": float(perplexity)}


def _arrays(tensors: list[Tensor]) -> list[np.ndarray]:
    """Volumes (H, W, D) of the first channel; images of three channels in colour, (H, W, 1, 3)."""
    arrays = []
    for t in tensors:
        colour = t.shape[1] == 3 and t.shape[-1] == 1
        arrays.append((t[0].movedim(0, -1) if colour else t[0, 0]).float().cpu().numpy())
    return arrays
