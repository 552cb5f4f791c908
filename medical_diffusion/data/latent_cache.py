"""The latents of a data set, encoded once and kept on disk: the normal path of stage 2.

Item ``n * V + v`` is volume n under flip variant v. The cache holds the encoder's whitened output, never a noisy draw.
Its name is a hash of codec weights, data and preprocessing, so a stale cache can not be taken for a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from medical_diffusion.data.augmentation import flip_variants
from medical_diffusion.errors import UserError
from medical_diffusion.files import content_hash, write_atomically


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a network's parameters and buffers."""
    digest = {
        name: content_hash([list(t.shape), t.detach().cpu().contiguous().numpy().tobytes().hex()])
        for name, t in network.state_dict().items()
    }
    return content_hash(digest)


class LatentDataset(Dataset):
    """Latents of ``volumes`` under ``codec``; built at the first item or by :meth:`build`, read by memory map then.

    Args:
        volumes: data set whose items hold ``image`` (C, H, W, D).
        codec: autoencoder with ``encode_latents``; not touched before the first item. A callable without arguments
            that returns it is accepted too.
        cache_dir: folder of the cache files.
        data_key: what identifies data and preprocessing, for example the data list's fingerprint.
        flip_axes: axes whose flips training may draw.
        device: where the codec runs.
        name: start of the file's name.
        labels: class index of each volume, or None; items then hold ``class_label`` as well. Latents do not depend on
            them, so other labels use the same cache.

    Raises:
        UserError: another number of labels than volumes.
    """

    def __init__(
        self,
        volumes: Dataset,
        codec: nn.Module | Callable[[], nn.Module],
        cache_dir: str | Path,
        data_key: str,
        flip_axes: Sequence[int] = (),
        device: str | torch.device = "cpu",
        name: str = "latents",
        labels: Sequence[int] | None = None,
    ) -> None:
        count = len(volumes)  # type: ignore[arg-type]
        if labels is not None and len(labels) != count:
            raise UserError(f"labels must be one number for each of the {count} volumes", f"{len(labels)} labels")
        self.labels = None if labels is None else torch.tensor([int(label) for label in labels])
        self.volumes, self.codec, self.cache_dir = volumes, codec, Path(cache_dir)
        self.data_key, self.name, self.device = data_key, name, torch.device(device)
        self.variants = flip_variants(flip_axes)
        self._latents: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.volumes) * len(self.variants)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"image": torch.from_numpy(np.array(self.build()[index]))}
        if self.labels is not None:
            item["class_label"] = self.labels[index // len(self.variants)]
        return item

    def build(self) -> np.ndarray:
        """The memory-mapped latents (items, C, h, w, d), encoding them now if they are not on disk yet."""
        if self._latents is None:
            path = self.path()
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            if not path.is_file() and (not distributed or torch.distributed.get_rank() == 0):
                self._encode(path)
            if distributed:
                torch.distributed.barrier()
            self._latents = np.load(path, mmap_mode="r")
        return self._latents

    def path(self) -> Path:
        """File of this cache; its name holds the hash of codec weights, data and flips."""
        key = content_hash([weights_hash(self._network()), self.data_key, self.variants])
        return self.cache_dir / f"{self.name}_{key[:24]}.npy"

    def _network(self) -> nn.Module:
        if not isinstance(self.codec, nn.Module):
            self.codec = self.codec()
        return self.codec

    @torch.no_grad()
    def _encode(self, path: Path) -> None:
        codec = self._network().to(self.device).eval()
        for stale in self.cache_dir.glob(f"{self.name}_*.npy"):
            stale.unlink()

        def write(part: Path) -> None:
            latents: np.memmap | None = None
            bar = tqdm(range(len(self.volumes)), desc=f"encoding {self.name}", unit="volume")  # type: ignore[arg-type]
            for n in bar:
                image = torch.as_tensor(self.volumes[n]["image"]).to(self.device)[None]
                for v, axes in enumerate(self.variants):
                    flipped = image.flip([axis + 2 for axis in axes]) if axes else image
                    z = codec.encode_latents(flipped.contiguous(memory_format=torch.channels_last_3d))[0]  # type: ignore[operator]
                    if latents is None:
                        shape = (len(self), *z.shape)
                        latents = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
                    latents[n * len(self.variants) + v] = z.float().cpu().numpy()
            if latents is not None:
                latents.flush()

        write_atomically(path, write)
