"""Training crops of unlabelled volumes, a function of (seed, place in the run), so that a resumed run repeats them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from medical_diffusion.shapes import per_axis

DARKEST = -1.0


class UnlabelledCrops(Dataset):
    """Random crops (C, H, W, D) of ``image`` by (index, place in the run), or the middle of volume ``index``.

    Args:
        source: preprocessed volumes with ``image`` (C, H, W, D) in [-1, 1].
        size: of the crops (H, W, D); a volume that is smaller is padded with -1.
        seed: of the crops.
    """

    def __init__(self, source: Dataset, size: int | Sequence[int], seed: int = 0) -> None:
        self.source, self.size, self.seed = source, per_axis(size, "size"), seed

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Tensor]:
        index, position = place if isinstance(place, tuple) else (place, None)
        image = torch.as_tensor(self.source[index]["image"])
        room = [max(0, n - size) for n, size in zip(image.shape[1:], self.size, strict=True)]
        start = [r // 2 for r in room]
        if position is not None and any(room):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + position) % (1 << 62))
            start = [int(torch.randint(r + 1, (), generator=generator)) for r in room]
        image = image[(slice(None), *(slice(s, s + size) for s, size in zip(start, self.size, strict=True)))]
        missing = [size - n for n, size in zip(image.shape[1:], self.size, strict=True)]
        if any(missing):
            padding = [n for gap in reversed(missing) for n in (gap // 2, gap - gap // 2)]
            image = F.pad(image, padding, value=DARKEST)
        return {"image": image.contiguous()}
