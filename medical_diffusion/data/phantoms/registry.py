"""The kinds of phantom that can be written: a new kind is one entry here and one generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medical_diffusion.data.phantoms import chest_ct
from medical_diffusion.data.phantoms.primitives import Phantom
from medical_diffusion.errors import UserError, did_you_mean


@dataclass(frozen=True)
class PhantomKind:
    """A generator ``(seed, image_size) -> Phantom`` with what a reader of its files needs to know."""

    generate: Callable[[int, Sequence[int]], Phantom]
    labels: Mapping[str, int]
    version: int
    intensity_unit: str


PHANTOM_KINDS: dict[str, PhantomKind] = {
    "chest_ct": PhantomKind(chest_ct.chest_ct_phantom, chest_ct.MASK_LABELS, chest_ct.VERSION, "HU"),
}


def phantom_kind(name: str) -> PhantomKind:
    """The kind called ``name``.

    Raises:
        UserError: no such kind.
    """
    if name not in PHANTOM_KINDS:
        raise UserError("phantom kind must be a known one", name, did_you_mean(name, PHANTOM_KINDS))
    return PHANTOM_KINDS[name]
