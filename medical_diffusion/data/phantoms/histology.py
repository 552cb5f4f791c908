"""Schematic H&E section of the colon: ordered glands, or solid sheets of tumour with lymphocytes and mucin.

Drawn as concentrations of two stains, haematoxylin (nuclei) and eosin (cytoplasm, fibres), which absorb light by
Beer-Lambert's law, ``I = I0 10^-(h H + e E)``. The vectors H and E of a section lie between those of Ruifrok & Johnston
(2001) and of Macenko et al. (2009), since stains and scanners differ. A field of 128 um makes a tumour nucleus about
6 pixels wide at 64 x 64 and gives 0.25 um a pixel, a 40x objective, at 512 x 512.

The class is that of colorectal cancers by microsatellites. Stable, on even seeds: glands, each a ring of slim dark
nuclei around a lumen, in fibrous stroma. Instable, on odd seeds: more nuclei, larger, rounder and paler, in solid
sheets, with infiltrating lymphocytes and lakes of mucin (Jenkins et al. 2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medical_diffusion.data.phantoms.nuclei import LYMPHOCYTE, paint_nucleus
from medical_diffusion.data.phantoms.plane import Plane, image_plane
from medical_diffusion.data.phantoms.primitives import Array, Phantom
from medical_diffusion.data.phantoms.tissue import (
    FIELD_UM,
    MASK_LABELS,
    STROMA,
    draw_glands,
    draw_sheets,
    paint_stroma,
)

VERSION = 1  # raised with every change of what a seed draws
CLASSES = ("stable", "instable")
FINEST_UM = 1.0  # a fifth of a small nucleus
LEVELS = 255
# optical density of a concentration of 1 in R, G, B: Ruifrok & Johnston, Macenko et al.
STAINS = np.array([[[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]], [[0.563, 0.720, 0.406], [0.216, 0.801, 0.558]]])


def histology_phantom(seed: int, image_size: int | Sequence[int] = (64, 64, 1)) -> Phantom:
    """One tile; even seeds are stable, odd ones instable.

    Args:
        seed: whole number >= 0; each has its own generator.
        image_size: pixels (H, W, 1); the longer side spans the field, and is the same tissue at every size.

    Returns:
        Phantom: image (H, W, 1, 3) of whole RGB values 0 to 255, mask (H, W, 1) with ``MASK_LABELS``, and the facts
        ``class_name``; of the nuclei whose middle lies in the tile ``nuclei`` (lymphocytes included), ``lymphocytes``
        and ``nuclei_per_mm2``; ``nucleus_area_um2``, the mean of those that are not lymphocytes.

    Raises:
        UserError: a size that is not positive, or a depth other than 1.
    """
    size = image_plane(image_size, "histological section")
    shape_rng, texture_rng, stain_rng, noise_rng = (np.random.default_rng([seed, stream]) for stream in range(4))
    name = CLASSES[seed % len(CLASSES)]
    plane = Plane(size, FIELD_UM / max(size), FINEST_UM, STROMA)
    flow = shape_rng.uniform(0, math.pi)
    paint_stroma(plane, flow, texture_rng)
    draw = draw_glands if name == "stable" else draw_sheets
    nuclei = draw(plane, flow, shape_rng, texture_rng)
    chromatin = plane.noise(texture_rng, 1.3, FIELD_UM)
    for nucleus in nuclei:
        paint_nucleus(plane, nucleus, chromatin, MASK_LABELS[nucleus.look.kind])
    half = np.array([size[1], size[0]]) * plane.pixel / 2
    seen = [n for n in nuclei if (np.abs(n.centre) < half).all()]
    lymphocytes = sum(n.look is LYMPHOCYTE for n in seen)
    facts: dict[str, object] = {
        "class_name": name,
        "nuclei": len(seen),
        "lymphocytes": lymphocytes,
        "nuclei_per_mm2": round(len(seen) / (4e-6 * float(half.prod()))),
        "nucleus_area_um2": round(float(np.mean([n.area for n in seen if n.look is not LYMPHOCYTE] or [0])), 1),
    }
    image = _stained(plane, stain_rng, noise_rng)
    return Phantom(image[:, :, None], plane.labels()[..., None], plane.affine(unit=1e-3), facts)


def _stained(plane: Plane, rng: np.random.Generator, noise_rng: np.random.Generator) -> Array:
    """RGB (H, W, 3): the light that a section of this thickness and these stains lets through, with noise."""
    share = rng.uniform(0.3, 0.95)
    vectors = (1 - share) * STAINS[0] + share * STAINS[1]
    strength = rng.uniform((0.85, 0.75), (1.2, 1.25))
    density = plane.layers @ (strength[:, None] * vectors).astype(np.float32)
    lamp = rng.uniform(236, 250) * rng.uniform((0.98, 0.97, 0.96), 1)
    image = plane.average(lamp * np.power(np.float32(10), -density))
    noise = rng.uniform(0.8, 2.2) * noise_rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(np.clip(image + noise, 0, LEVELS)).astype(np.float32)
