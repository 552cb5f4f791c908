"""Pictures at the end of a run: real, reconstructed and synthetic volumes in three planes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.bundle.training_data import TrainingData, load_volumes
from medical_diffusion.pictures import volume_grid, write_png
from medical_diffusion.synthesis import LatentSampler, SampleWriter
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)

LARGEST_PREVIEW_BATCH_VOXELS = 2 * 128**3


@torch.no_grad()
def write_preview(
    folders: Folders,
    data: TrainingData,
    autoencoder: nn.Module,
    network: nn.Module,
    sampler: LatentSampler,
    settings: Settings,
) -> Path | None:
    """``preview.png``: held-out volumes, their reconstructions, and samples with seeds from ``settings.seed``."""
    if not is_main_process():
        return None
    count = settings.num_previews
    device = next(network.parameters()).device
    autoencoder.eval()
    real = load_volumes(data, data.validation[:count])
    reconstructed = [autoencoder(torch.from_numpy(v)[None, None].to(device))[0, 0].cpu().numpy() for v in real]
    synthetic = draw(sampler, network, range(settings.seed, settings.seed + count))
    rows = [
        (f"real, held out ({len(real)})", real),
        (f"reconstructed by the autoencoder, compression {tuple(autoencoder.compression)}", reconstructed),  # type: ignore
        (f"synthetic, seeds {settings.seed} to {settings.seed + count - 1}", synthetic),
    ]
    return write_png(folders.preview, volume_grid(rows, (-1.0, 1.0), data.output_spacing))


@torch.no_grad()
def sample_picture(sampler: LatentSampler, network: nn.Module, data: TrainingData, count: int) -> np.ndarray:
    """A few samples for the training logs."""
    return volume_grid([("synthetic", draw(sampler, network, range(count)))], (-1.0, 1.0), data.output_spacing)


def draw(sampler: LatentSampler, network: nn.Module, seeds: range) -> list[np.ndarray]:
    """Samples (H, W, D) in [-1, 1] for ``seeds``, in batches that fit beside the networks."""
    voxels = int(np.prod(sampler.autoencoder.image_size))  # type: ignore[arg-type]
    batch = max(1, min(len(seeds), LARGEST_PREVIEW_BATCH_VOXELS // voxels))
    volumes: list[np.ndarray] = []

    def progress(steps: object) -> tqdm:
        return tqdm(steps, desc="sampling the preview", unit="step", leave=False)

    for start in range(seeds.start, seeds.stop, batch):
        chosen = range(start, min(start + batch, seeds.stop))
        volumes += [v[0].cpu().numpy() for v in sampler(chosen, network, progress=progress)]
    return volumes


def write_sample_preview(settings: Settings, writer: SampleWriter) -> Path:
    """``preview.png`` of the samples in a folder, the first ``num_previews`` of this run."""
    seeds = range(settings.seed, settings.seed + settings.num_samples)[: settings.num_previews]
    volumes = [writer.read(seed) for seed in seeds]
    label = f"synthetic, seeds {seeds[0]} to {seeds[-1]}, {writer.unit}"
    picture = volume_grid([(label, volumes)], writer.display_range, writer.spacing)
    path = write_png(writer.output_dir / "preview.png", picture)
    logger.info("written: %d samples and %s", settings.num_samples, path)
    return path
