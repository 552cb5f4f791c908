"""Augmentation of the paper's segmentation through TorchIO: flip, affine, ghosting, noise, blur, bias field, gamma.

Each transform is applied with its own probability to image and label map together; the label map follows flips and
affine maps by nearest neighbour and is left alone by the others. Numbers come from the seed of the call and from
nothing else. Strengths are TorchIO's defaults, the affine's cut to what anatomy of one kind shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medical_diffusion.errors import UserError, did_you_mean

#: Directions of an axis by its anatomical name; flat images have rows and columns instead.
ANATOMICAL_AXES = {"left-right": "LR", "anterior-posterior": "AP", "inferior-superior": "IS"}
FLAT_AXES = {"top-bottom": 0, "left-right": 1}
#: How often each transform is applied (the paper does not state it).
PROBABILITIES = {
    "affine": 0.5,
    "ghosting": 0.1,
    "noise": 0.2,
    "blur": 0.2,
    "bias_field": 0.2,
    "gamma": 0.3,
}
FLIP_PROBABILITY = 0.5
LARGEST_ROTATION = 15.0  # degrees
LARGEST_SCALING = 0.15
LARGEST_SHIFT = 4.0  # of the finest voxel edge
LARGEST_NOISE = 0.08  # of the range of the intensities
LARGEST_BLUR = 1.0  # standard deviation, of the finest voxel edge
BIAS_COEFFICIENTS = 0.2  # TorchIO's 0.5 multiplies corners by up to a hundred
BIAS_ORDER = 2


def flip_axes(names: Sequence[str], orientation: str, planar: bool = False) -> tuple[int, ...]:
    """Array axes (0 = H, 1 = W, 2 = D) of anatomical names.

    Args:
        names: ``left-right``, ``anterior-posterior``, ``inferior-superior``; of flat images ``top-bottom`` (rows) and
            ``left-right`` (columns).
        orientation: directions in which H, W and D grow, such as RAS.
        planar: flat images, which are as they are looked at.

    Raises:
        UserError: another name.
    """
    known: Mapping[str, int] = FLAT_AXES
    if not planar:
        pairs = ANATOMICAL_AXES.items()
        known = {name: next(n for n, code in enumerate(orientation) if code in pair) for name, pair in pairs}
    for name in names:
        if name not in known:
            raise UserError("flips must name anatomical axes", name, did_you_mean(name, known))
    return tuple(sorted({known[name] for name in names}))


class SegmentationAugmentation:
    """``(image, label, seed)`` to an augmented pair.

    Args:
        flip_axes: array axes that may be flipped; none by default, since a left-right flip mirrors the heart.
        probabilities: of each other transform, by the names in ``PROBABILITIES``; those left out keep theirs.
        planar: images of depth 1: nothing acts along or turns out of the plane.

    Raises:
        UserError: an unknown transform.
    """

    def __init__(
        self,
        flip_axes: Sequence[int] = (),
        probabilities: Mapping[str, float] | None = None,
        planar: bool = False,
    ) -> None:
        for name in probabilities or {}:
            if name not in PROBABILITIES:
                raise UserError("an augmentation must be a known one", name, did_you_mean(name, PROBABILITIES))
        self.flip_axes, self.planar = tuple(flip_axes), planar
        self.probabilities = {**PROBABILITIES, **(probabilities or {})}
        self._chain: Any = None

    def __call__(
        self, image: Tensor, label: Tensor, seed: int, spacing: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> tuple[Tensor, Tensor]:
        """Augment one pair.

        Args:
            image: (C, H, W, D) in [-1, 1].
            label: (1, H, W, D) of whole numbers.
            seed: of all that is drawn.
            spacing: voxel edges (H, W, D), whatever their unit: thick slices are turned as what they show, not sheared.

        Returns:
            the pair, of the same shapes and types; the image is clipped to [-1, 1], as preprocessing clips.
        """
        import torchio

        if self._chain is None:
            self._chain = self._build()
        affine = np.diag([*self._edges(spacing), 1.0])
        subject = torchio.Subject(
            # gamma and the bias field are meant for intensities of one sign
            image=torchio.ScalarImage(tensor=(image.float() + 1) / 2, affine=affine),
            label=torchio.LabelMap(tensor=label, affine=affine),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed = self._chain(subject)
        image = (changed.image.data.to(image.dtype) * 2 - 1).clamp(-1, 1)
        return image, changed.label.data.to(label.dtype)

    def _edges(self, spacing: Sequence[float]) -> list[float]:
        """Voxel edges as multiples of the finest; an image has none in depth."""
        edges = [float(edge) for edge in spacing[: 2 if self.planar else 3]]
        return [*(edge / min(edges) for edge in edges), 1.0][:3]

    def _build(self) -> Any:
        import torchio

        p = self.probabilities
        axes = (0, 1) if self.planar else (0, 1, 2)
        turn = (0.0, 0.0, 0.0, 0.0, -LARGEST_ROTATION, LARGEST_ROTATION) if self.planar else LARGEST_ROTATION
        along_depth = 0.0 if self.planar else LARGEST_SHIFT
        s = LARGEST_SHIFT
        shift = (-s, s, -s, s, -along_depth, along_depth)
        steps = [
            torchio.RandomAffine(
                scales=LARGEST_SCALING,
                degrees=turn,
                translation=shift,
                default_pad_value=0.0,
                p=p["affine"],
            ),
            torchio.RandomGhosting(axes=axes, p=p["ghosting"]),
            torchio.RandomBlur(std=(0, LARGEST_BLUR), p=p["blur"]),
            torchio.RandomBiasField(coefficients=BIAS_COEFFICIENTS, order=BIAS_ORDER, p=p["bias_field"]),
            torchio.RandomGamma(p=p["gamma"]),
            torchio.RandomNoise(std=(0, LARGEST_NOISE), p=p["noise"]),
        ]
        if self.flip_axes:
            steps.insert(0, torchio.RandomFlip(axes=self.flip_axes, flip_probability=FLIP_PROBABILITY))
        return torchio.Compose(steps)
