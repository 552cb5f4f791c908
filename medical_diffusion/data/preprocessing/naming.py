"""What a volume is called in messages."""

from __future__ import annotations

import torch
from monai.data import MetaTensor


def name_of(volume: torch.Tensor) -> str:
    """The file that a volume came from, where its metadata tell."""
    return volume.meta.get("filename_or_obj", "a volume") if isinstance(volume, MetaTensor) else "a volume"
