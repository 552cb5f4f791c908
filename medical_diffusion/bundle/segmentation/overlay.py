"""Pictures of segmentations as in the paper's Figure 5: three planes, right voxels green, wrong ones red."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel
import numpy as np

from medical_diffusion.pictures import planes, to_grey

RIGHT, WRONG = (40, 200, 60), (230, 40, 40)
CLASS_COLOURS = (
    (230, 75, 60), (60, 160, 235), (90, 200, 80), (245, 190, 60), (175, 110, 220), (80, 210, 200), (240, 130, 190),
    (170, 140, 90), (130, 230, 130), (120, 120, 240), (250, 230, 130),
)  # fmt: skip
OPACITY = 0.55
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.0


def agreement_planes(
    image: np.ndarray, prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray
) -> list[np.ndarray]:
    """Planes through the middle of the reference (of the prediction where that is empty).

    Args:
        image: (H, W, D), or (H, W, 1, 3) in colour.
        prediction, reference: (H, W, D) of channel numbers.
        affine: of all three.

    Returns:
        RGB pictures, three of a volume, one of an image.
    """
    colours = np.zeros((*prediction.shape, 3), dtype=np.uint8)
    colours[(prediction == reference) & (reference > 0)] = RIGHT
    colours[prediction != reference] = WRONG
    where = reference > 0 if (reference > 0).any() else prediction > 0
    return _pictures(image, colours, where, affine)


def class_planes(image: np.ndarray, segmentation: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """Planes through the middle of a segmentation, each class in a colour of its own; arguments as above."""
    colours = np.zeros((*segmentation.shape, 3), dtype=np.uint8)
    for channel in range(1, int(segmentation.max()) + 1):
        colours[segmentation == channel] = CLASS_COLOURS[(channel - 1) % len(CLASS_COLOURS)]
    return _pictures(image, colours, segmentation > 0, affine)


def _pictures(image: np.ndarray, colours: np.ndarray, where: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    low, high = np.percentile(image, (LOW_PERCENTILE, HIGH_PERCENTILE))
    grey = to_grey(image, float(low), float(high))
    rgb = grey if grey.ndim == 4 else np.repeat(grey[..., None], 3, axis=-1)
    shown = colours.any(axis=-1, keepdims=True)
    mixed = np.where(shown, OPACITY * colours + (1 - OPACITY) * rgb, rgb)
    spacing: Sequence[float] = (1.0, 1.0, 1.0)
    if where.shape[2] > 1:
        turn = nibabel.orientations.io_orientation(affine)
        mixed, where = (nibabel.orientations.apply_orientation(a, turn) for a in (mixed, where))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])].tolist()
    places = np.argwhere(where)
    at = np.median(places, axis=0).astype(int).tolist() if len(places) else None
    bands = [planes(mixed[..., band], spacing, at) for band in range(3)]
    return [np.stack(bytes_of, axis=-1).astype(np.uint8) for bytes_of in zip(*bands, strict=True)]
