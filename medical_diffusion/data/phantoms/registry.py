"""The kinds of phantom that can be written: a new kind is one entry here and one generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medical_diffusion.data.phantoms import (
    brain_mri,
    breast_mri,
    chest_ct,
    fundus,
    histology,
    knee_mri,
    radiograph,
    shapes,
)
from medical_diffusion.data.phantoms.primitives import Phantom
from medical_diffusion.errors import UserError, did_you_mean

#: Voxels along two axes from which on a phantom shows what it stands for; the third may have 1, a slice.
LEAST_EXTENT = 8


@dataclass(frozen=True)
class PhantomKind:
    """A generator ``(seed, image_size) -> Phantom`` with what a reader of its files needs to know.

    Attributes:
        generate: draws the phantom of a seed.
        labels: numbers in its mask by name.
        version: raised with every change of what a seed draws.
        intensity_unit: of its image.
        classes: names that ``facts["class_name"]`` takes; none where phantoms are unlabelled.
        planar: images with whole values 0 to 255, rows down and columns right, instead of volumes.
        channels: 1 for an image (H, W, D), 3 for an RGB image (H, W, 1, 3), which is planar.
    """

    generate: Callable[[int, Sequence[int]], Phantom]
    labels: Mapping[str, int]
    version: int
    intensity_unit: str
    classes: tuple[str, ...] = ()
    planar: bool = False
    channels: int = 1


PHANTOM_KINDS: dict[str, PhantomKind] = {
    "chest_ct": PhantomKind(chest_ct.chest_ct_phantom, chest_ct.MASK_LABELS, chest_ct.VERSION, "HU"),
    "radiograph": PhantomKind(
        generate=radiograph.radiograph_phantom,
        labels=radiograph.MASK_LABELS,
        version=radiograph.VERSION,
        intensity_unit="grey, 0 to 255",
        classes=radiograph.CLASSES,
        planar=True,
    ),
    "fundus": PhantomKind(
        generate=fundus.fundus_phantom,
        labels=fundus.MASK_LABELS,
        version=fundus.VERSION,
        intensity_unit="RGB, 0 to 255",
        classes=fundus.CLASSES,
        planar=True,
        channels=3,
    ),
    "histology": PhantomKind(
        generate=histology.histology_phantom,
        labels=histology.MASK_LABELS,
        version=histology.VERSION,
        intensity_unit="RGB, 0 to 255",
        classes=histology.CLASSES,
        planar=True,
        channels=3,
    ),
    "brain_mri": PhantomKind(
        generate=brain_mri.brain_mri_phantom,
        labels=brain_mri.MASK_LABELS,
        version=brain_mri.VERSION,
        intensity_unit="MRI signal, arbitrary",
    ),
    "breast_mri": PhantomKind(
        generate=breast_mri.breast_mri_phantom,
        labels=breast_mri.MASK_LABELS,
        version=breast_mri.VERSION,
        intensity_unit="MRI signal, arbitrary",
    ),
    "knee_mri": PhantomKind(
        generate=knee_mri.knee_mri_phantom,
        labels=knee_mri.MASK_LABELS,
        version=knee_mri.VERSION,
        intensity_unit="MRI signal, arbitrary",
        classes=knee_mri.CLASSES,
    ),
    "shapes": PhantomKind(
        generate=shapes.shapes_phantom,
        labels=shapes.MASK_LABELS,
        version=shapes.VERSION,
        intensity_unit="arbitrary, 0 to about 1000",
    ),
}


def phantom_kind(name: str) -> PhantomKind:
    """The kind called ``name``.

    Raises:
        UserError: no such kind.
    """
    if name not in PHANTOM_KINDS:
        raise UserError("phantom kind must be a known one", name, did_you_mean(name, PHANTOM_KINDS))
    return PHANTOM_KINDS[name]


def check_phantom_size(name: str, size: tuple[int, int, int]) -> None:
    """Refuse a size (H, W, D) at which phantoms show nothing of what they stand for.

    Raises:
        UserError: fewer than two axes of ``LEAST_EXTENT`` voxels.
    """
    short = [axis for axis, extent in enumerate(size) if extent < LEAST_EXTENT]
    if len(short) <= 1:
        return
    rule = f"{name} phantoms must have at least {LEAST_EXTENT} voxels along two axes (H, W, D)"
    larger = tuple(LEAST_EXTENT if axis in short[:-1] else extent for axis, extent in enumerate(size))
    raise UserError(rule, size, f"Use for example {larger}")
