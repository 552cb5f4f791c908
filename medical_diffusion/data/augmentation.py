"""Random flips along named anatomical axes, drawn from torch's generator so that a resumed run repeats them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def flip_variants(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of flips along ``axes`` (0 = H, 1 = W, 2 = D), the unflipped first."""
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(tuple(axes), count)]


class RandomFlips:
    """Flips each volume of a batch along each axis of ``axes`` with probability one half.

    Args:
        axes: spatial axes, 0 = H, 1 = W, 2 = D; a left-right flip of a chest would mirror the heart.
    """

    def __init__(self, axes: Sequence[int] = ()) -> None:
        self.axes = tuple(axes)

    def __call__(self, images: Tensor) -> Tensor:
        """``images`` (B, C, H, W, D) with some volumes flipped."""
        for axis in self.axes:
            chosen = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(chosen[:, None, None, None, None], images.flip(axis + 2), images)
        return images
