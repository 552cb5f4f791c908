"""Features of a set of images, computed once: streamed in batches, kept per image on disk.

The cache holds one small file an image, under the hash of the extractor's protocol and the key of the image (a hash of
its content and of how it is read). An interrupted extraction goes on where it stopped, another set that shares images
shares their features, and a change of weights or preprocessing is another folder. Only one batch of images is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.features.extractor import FeatureExtractor
from medical_diffusion.files import check_writable, content_hash, write_atomically, write_json

BATCH_SIZE = 16


class Images(Protocol):
    """Float tensors ``(C, H, W, D)`` in [-1, 1] by index, all of one shape; ``keys`` (one text each) for a cache."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


def extract_features(
    images: Images,
    extractor: FeatureExtractor,
    cache_dir: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
    description: str = "Features",
) -> np.ndarray:
    """Features (N, F) of every image in order, float32.

    Args:
        images: see :class:`Images`; with ``cache_dir`` they need the attribute ``keys``.
        extractor: as from :func:`~medical_diffusion.evaluation.features.factory.create_extractor`.
        cache_dir: folder of the cache; without it nothing is kept.
        batch_size: images at a time.
        device: where the extractor runs; it is left there.
        description: of the progress bar.

    Raises:
        UserError: no images, different shapes, a cache without keys or not writable, features that are not finite.
    """
    if batch_size < 1:
        raise UserError("batch_size must be at least 1", batch_size)
    if len(images) == 0:
        raise UserError("features need at least one image")
    cache = FeatureCache(cache_dir, extractor.protocol) if cache_dir is not None else None
    keys = _keys(images, needed=cache is not None)
    features: dict[str, np.ndarray] = {}
    missing: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key not in features and key not in missing:
            known = cache.read(key) if cache else None
            if known is None:
                missing[key] = index
            else:
                features[key] = known
    if missing:
        extractor.to(device)
        shape = images[next(iter(missing.values()))].shape
        with tqdm(total=len(missing), desc=description, unit="image", leave=False) as bar:
            for batch in _batches(list(missing), batch_size):
                stacked = _stack(images, [missing[key] for key in batch], shape).to(device)
                for key, row in zip(batch, _finite(extractor(stacked), extractor.name), strict=True):
                    features[key] = row
                    if cache:
                        cache.write(key, row)
                bar.update(len(batch))
    return np.stack([features[key] for key in keys])


class FeatureCache:
    """Vectors of features by key, under one protocol.

    Args:
        folder: of all protocols.
        protocol: of the extractor.

    Raises:
        UserError: the folder is not writable.
    """

    def __init__(self, folder: str | Path, protocol: dict[str, Any]) -> None:
        self.folder = check_writable(Path(folder) / content_hash(protocol)[:16])
        if not (self.folder / "protocol.json").is_file():
            write_json(self.folder / "protocol.json", protocol)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def read(self, key: str) -> np.ndarray | None:
        """The features, or None where they are not there or cannot be read."""
        try:
            return np.load(self._path(key), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def write(self, key: str, features: np.ndarray) -> None:
        """Keep the features, whole or not at all."""

        def save(path: Path) -> None:
            with open(path, "wb") as stream:
                np.save(stream, features)

        write_atomically(self._path(key), save)


def _keys(images: Images, needed: bool) -> Sequence[str]:
    if not needed:
        return [str(index) for index in range(len(images))]
    keys = cast(Sequence[str] | None, getattr(images, "keys", None))
    if keys is None or callable(keys) or len(keys) != len(images):
        raise UserError("a cache of features needs one key an image", "images without them", "Leave out cache_dir")
    return keys


def _batches(keys: list[str], size: int) -> Iterator[list[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _stack(images: Images, indices: list[int], shape: torch.Size) -> Tensor:
    loaded = [images[index] for index in indices]
    for index, image in zip(indices, loaded, strict=True):
        if image.shape != shape:
            shapes = f"{tuple(shape)}, but {tuple(image.shape)} for image {index}"
            raise UserError("images must have the same shape and channels", shapes, "Resize them to a common size")
    return torch.stack(loaded)


def _finite(features: Tensor, name: str) -> np.ndarray:
    if not torch.isfinite(features).all():
        raise UserError(
            f"features of the extractor {name} must be finite", "some that are not", "Check images and network"
        )
    return features.cpu().numpy().astype(np.float32)
