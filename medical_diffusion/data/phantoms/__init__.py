"""Procedural phantoms: labelled volumes and images that need no data, for trying, testing and timing."""

from medical_diffusion.data.phantoms.chest_ct import MASK_LABELS, chest_ct_phantom
from medical_diffusion.data.phantoms.primitives import Phantom
from medical_diffusion.data.phantoms.radiograph import radiograph_phantom
from medical_diffusion.data.phantoms.registry import PHANTOM_KINDS, PhantomKind
from medical_diffusion.data.phantoms.writer import PHANTOM_LABELS, write_phantoms

__all__ = [
    "MASK_LABELS",
    "PHANTOM_KINDS",
    "PHANTOM_LABELS",
    "Phantom",
    "PhantomKind",
    "chest_ct_phantom",
    "radiograph_phantom",
    "write_phantoms",
]
