from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.utility import utility_auroc


def disks(count: int, depth: int, seed: int) -> tuple[Tensor, list[int]]:
    """Noise, brighter in the middle for class 1."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, 12, 12, depth, generator=generator)
    labels = [n % 2 for n in range(count)]
    images[1::2, :, 4:8, 4:8] += 0.6
    return images.clamp(-1, 1), labels


@pytest.mark.parametrize("depth", [1, 5])
def test_images_that_show_their_class_are_of_use_and_shuffled_labels_are_not(depth: int) -> None:
    images, labels = disks(40, depth, 0)
    test_images, test_labels = disks(30, depth, 1)
    useful = utility_auroc(images, labels, test_images, test_labels, ("a", "b"), steps=40)
    assert useful.value > 0.95
    assert useful.low <= useful.value <= useful.high
    wrong = utility_auroc(images, [1 - n for n in labels], test_images, test_labels, ("a", "b"), steps=40)
    assert wrong.value < 0.1
    assert useful.n == 30


def test_one_class_is_refused() -> None:
    images, labels = disks(8, 1, 0)
    with pytest.raises(UserError, match=r"at least two classes.*none of b"):
        utility_auroc(images, labels, images, [0] * 8, ("a", "b"), steps=1)
    with pytest.raises(UserError, match="training images of every class"):
        utility_auroc(images, [0] * 8, images, labels, ("a", "b"), steps=1)
