"""Pictures at the end of a run: real, reconstructed and synthetic volumes in three planes, or images by class."""

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
from medical_diffusion.pictures import picture_of, volume_grid, write_png
from medical_diffusion.synthesis import LatentSampler, SampleWriter
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)

LARGEST_PREVIEW_BATCH_VOXELS = 2 * 128**3

Row = tuple[str, list[np.ndarray]]


@torch.no_grad()
def write_preview(
    folders: Folders,
    data: TrainingData,
    autoencoder: nn.Module,
    network: nn.Module,
    sampler: LatentSampler,
    settings: Settings,
) -> Path | None:
    """``preview.png``: held-out volumes, their reconstructions, and samples with seeds from ``settings.seed``.

    Where there are classes, each has its own rows of held-out and of synthetic images.
    """
    if not is_main_process():
        return None
    count = settings.num_previews
    device = next(network.parameters()).device
    autoencoder.eval()
    seeds = range(settings.seed, settings.seed + count)
    rows = [*_real_rows(data, count, autoencoder.to(device)), *_synthetic_rows(sampler, network, seeds)]
    return write_png(folders.preview, volume_grid(rows, (-1.0, 1.0), data.output_spacing))


def _real_rows(data: TrainingData, count: int, autoencoder: nn.Module) -> list[Row]:
    """Of each class the first held-out volumes, and below them their reconstructions."""
    rows = []
    device = next(autoencoder.parameters()).device
    for label, name in enumerate(data.class_names or [""]):
        items = [item for item in data.validation if not data.class_names or item["class_label"] == label][:count]
        if items:
            volumes = load_volumes(data, items)
            rows.append((f"real, held out{_of_class(name)} ({len(items)})", [picture_of(v) for v in volumes]))
            reconstructed = [picture_of(autoencoder(v[None].to(device))[0]) for v in volumes]
            title = f"reconstructed by the autoencoder{_of_class(name)}, compression {tuple(autoencoder.compression)}"  # type: ignore
            rows.append((title, reconstructed))
    return rows


def _synthetic_rows(sampler: LatentSampler, network: nn.Module, seeds: range) -> list[Row]:
    names = sampler.class_labels.names
    title = f"synthetic, seeds {seeds[0]} to {seeds[-1]}"
    if not names:
        return [(title, draw(sampler, network, seeds))]
    scale = f", guidance {sampler.guidance_scale:g}" if sampler.guidance_scale != 1 else ""
    return [
        (f"{title}{_of_class(name)}{scale}", draw(sampler, network, seeds, label)) for label, name in enumerate(names)
    ]


def _of_class(name: str) -> str:
    return f", {name}" if name else ""


@torch.no_grad()
def sample_picture(sampler: LatentSampler, network: nn.Module, data: TrainingData, count: int) -> np.ndarray:
    """A few samples for the training logs."""
    return volume_grid(_synthetic_rows(sampler, network, range(count)), (-1.0, 1.0), data.output_spacing)


def draw(sampler: LatentSampler, network: nn.Module, seeds: range, class_label: int | None = None) -> list[np.ndarray]:
    """Samples in [-1, 1] for ``seeds`` as pictures, in batches that fit beside the networks."""
    voxels = int(np.prod(sampler.autoencoder.image_size))  # type: ignore[arg-type]
    batch = max(1, min(len(seeds), LARGEST_PREVIEW_BATCH_VOXELS // voxels))
    pictures: list[np.ndarray] = []

    def progress(steps: object) -> tqdm:
        return tqdm(steps, desc="sampling the preview", unit="step", leave=False)

    for start in range(seeds.start, seeds.stop, batch):
        chosen = range(start, min(start + batch, seeds.stop))
        volumes = sampler(chosen, network, progress=progress, class_label=class_label)
        pictures += [picture_of(volume) for volume in volumes]
    return pictures


def write_sample_preview(settings: Settings, writer: SampleWriter) -> Path:
    """``preview.png`` of the samples in a folder: the first ``num_previews`` of this run, of each class."""
    seeds = range(settings.seed, settings.seed + settings.num_samples)
    rows = []
    for name in writer.class_labels.names or (None,):
        chosen = [seed for seed in seeds if name is None or writer.class_labels.name_of(seed) == name]
        chosen = chosen[: settings.num_previews]
        if chosen:
            title = f"synthetic{_of_class(name or '')}, seeds {chosen[0]} to {chosen[-1]}, {writer.unit}"
            rows.append((title, [writer.read(seed) for seed in chosen]))
    path = write_png(writer.output_dir / "preview.png", volume_grid(rows, writer.display_range, writer.spacing))
    logger.info("written: %d samples and %s", settings.num_samples, path)
    return path
