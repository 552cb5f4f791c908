"""Training crops of labelled volumes: what is cut and how it is changed follows from (seed, place in the run) alone.

:class:`StepLoader` with ``positions`` asks for (index of the volume, place in the run); the crop and the augmentation
of that place are drawn from generators of their own. So a run that was killed and resumed sees what an uninterrupted
one sees, whatever the number of loading processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from medical_diffusion.data.listing.label_maps import BACKGROUND
from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

GIB = 1 << 30
KEYS = ("image", "label", "foreground", "spacing")
CROPS = ("random", "center")
DARKEST = -1.0


class Source(Sized, Protocol):
    """Items with ``image``, ``label`` and ``foreground`` by index."""

    def __getitem__(self, index: int) -> Any: ...


class CropDataset(Dataset):
    """Crops (C, H, W, D) of ``image`` and (1, H, W, D) of ``label`` by (index, place in the run).

    Args:
        source: preprocessed volumes with ``image`` (C, H, W, D) in [-1, 1], ``label`` (1, H, W, D) of channel numbers
            and ``foreground`` of :class:`SampleForegroundd`; ``spacing`` (3,), mm, where augmentation is to know it.
        size: of the crops (H, W, D); a volume that is smaller is padded with -1 and background.
        crop: ``random``, or ``center`` (always the middle of the volume).
        foreground_share: probability that a random crop holds a voxel of a class drawn evenly among those there.
        augmentation: ``(image, label, seed, spacing=...) -> (image, label)`` on crops, or None.
        seed: of crops and augmentation.
        cache_gb: memory in which volumes are kept, per process.

    Raises:
        UserError: an unknown ``crop``.
    """

    def __init__(
        self,
        source: Source,
        size: int | Sequence[int],
        crop: str = "random",
        foreground_share: float = 0.5,
        augmentation: Callable[..., tuple[Tensor, Tensor]] | None = None,
        seed: int = 0,
        cache_gb: float = 2.0,
    ) -> None:
        if crop not in CROPS:
            raise UserError(f"crop must be one of {', '.join(CROPS)}", crop)
        self.source, self.size, self.crop = source, per_axis(size, "size"), crop
        self.foreground_share, self.augmentation, self.seed = foreground_share, augmentation, seed
        self.free_bytes = int(cache_gb * GIB)
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        index, position = place
        item = self._volume(index)
        seed = (self.seed * 1_000_003 + position) % (1 << 62)
        generator = torch.Generator().manual_seed(seed)
        image, label = self._cut(item, generator)
        if self.augmentation is not None:
            known = {"spacing": item["spacing"].tolist()} if "spacing" in item else {}
            image, label = self.augmentation(image, label, seed, **known)
        return {"image": image.contiguous(), "label": label.long().contiguous()}

    def _volume(self, index: int) -> dict[str, Tensor]:
        if index in self._kept:
            return self._kept[index]
        found = self.source[index]
        item = {key: found[key] for key in KEYS if key in found}
        needed = sum(tensor.numel() * tensor.element_size() for tensor in item.values())
        if needed <= self.free_bytes:
            self.free_bytes -= needed
            self._kept[index] = item
        return item

    def _cut(self, item: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image, label, shape = item["image"], item["label"], item["image"].shape[1:]
        start = [max(0, n - size) // 2 for n, size in zip(shape, self.size, strict=True)]
        if self.crop == "random":
            start = self._random_start(item["foreground"], shape, generator)
        inside = (slice(None), *(slice(s, s + size) for s, size in zip(start, self.size, strict=True)))
        image, label = image[inside], label[inside]
        missing = [size - n for n, size in zip(image.shape[1:], self.size, strict=True)]
        if any(missing):
            padding = [n for gap in reversed(missing) for n in (gap // 2, gap - gap // 2)]
            image = F.pad(image, padding, value=DARKEST)
            label = F.pad(label, padding, value=BACKGROUND)
        return image, label

    def _random_start(self, foreground: Tensor, shape: Sequence[int], generator: torch.Generator) -> list[int]:
        """First voxel of a crop, with a drawn voxel of a drawn class inside where the foreground is asked for."""
        room = [max(0, n - size) for n, size in zip(shape, self.size, strict=True)]
        draws = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        within = [min(int(draw * (r + 1)), r) for draw, r in zip(draws[:3], room, strict=True)]
        if not len(foreground) or draws[3] >= self.foreground_share:
            return within
        present = torch.unique(foreground[:, 0])
        places = foreground[foreground[:, 0] == present[int(draws[4] * len(present))], 1:]
        voxel = places[int(draws[5] * len(places))].tolist()
        # the voxel may lie anywhere in the crop: the same draws choose where, so that nothing is off centre by rule
        wanted = [v - int(draw * size) for v, draw, size in zip(voxel, draws[:3], self.size, strict=True)]
        return [min(max(0, start), r) for start, r in zip(wanted, room, strict=True)]
