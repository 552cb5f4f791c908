"""Held-out Dice during training, on the preprocessed grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_dice
from monai.networks import one_hot
from torch.utils.data import Dataset

from medical_diffusion.bundle.segmentation.segmenter import Segmenter


class DiceValidation:
    """Mean Dice of the classes over held-out volumes, and ``error`` = 1 - Dice, which is lower for better weights.

    A class that a volume does not hold does not count in it.

    Args:
        segmenter: of the network that is trained.
        dataset: preprocessed volumes with ``image`` and ``label``.
        classes: names of the foreground classes.
    """

    def __init__(self, segmenter: Segmenter, dataset: Dataset, classes: Sequence[str]) -> None:
        self.segmenter, self.dataset, self.classes = segmenter, dataset, tuple(classes)

    def __call__(self) -> dict[str, float]:
        """Figures by name; ``dice_<class>`` of each class."""
        rows = []
        for n in range(len(self.dataset)):  # type: ignore[arg-type]
            item = self.dataset[n]
            probabilities = self.segmenter.probabilities(item["image"])
            channels = len(self.classes) + 1
            chosen = one_hot(probabilities.argmax(0, keepdim=True)[None], channels)
            true = one_hot(torch.as_tensor(item["label"])[None], channels)
            # an absent class is NaN with ignore_empty
            rows.append(compute_dice(chosen, true, include_background=False, ignore_empty=True)[0].numpy())
        table = np.stack(rows)
        present = ~np.isnan(table).all(axis=0)
        by_class = {name: float(np.nanmean(table[:, c])) for c, name in enumerate(self.classes) if present[c]}
        dice = float(np.mean(list(by_class.values()))) if by_class else 0.0
        return {"dice": dice, "error": 1.0 - dice, **{f"dice_{name}": value for name, value in by_class.items()}}
