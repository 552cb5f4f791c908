"""Small synthetic sets of images as files, for tests of reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter


def smooth(count: int, seed: int, size: tuple[int, int] = (32, 28)) -> np.ndarray:
    """Strangers around one mean, bytes (N, H, W)."""
    common = np.random.default_rng(99).normal(size=size)
    noise = np.random.default_rng(seed).normal(size=(count, *size)) + 2 * common
    filtered = gaussian_filter(noise, (0, 1.2, 1.2))
    return np.clip(127 + 90 * filtered, 0, 255).astype(np.uint8)


def write(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{n:03d}.png")
    return folder
