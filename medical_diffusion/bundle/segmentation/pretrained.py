"""Whether a fine-tuning fits the pre-training it starts from: new subjects to judge by, the same look of volumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medical_diffusion.bundle.options import OPPOSITES
from medical_diffusion.bundle.segmentation.data import SegmentationData, exposure, settings_of
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.data import read_header
from medical_diffusion.data.listing.exposure import seen_subjects
from medical_diffusion.data.listing.tables import shown
from medical_diffusion.errors import UserError
from medical_diffusion.files import write_text

logger = logging.getLogger(__name__)

RELATIVE = ("percentile", "minmax")
"""Intensity mappings by volume."""
RELATIVE_WINDOW = [0.0, 1.0]
"""Window of samples of a diffusion model that was trained with one of these: their values are relative."""
HELD_OUT = "held_out.txt"
SAME_SPACING = 1.25
"""Voxel edges whose ratio is below this count as alike."""


def check_held_out(settings: Settings, data: SegmentationData, file: Path) -> None:
    """Refuse, or warn of, a test or validation part that would flatter: absent, or seen in pre-training.

    Args:
        file: gets the ids of both parts, one a line, for ``--held_out`` of a pre-training.

    Raises:
        UserError: one of the two, where ``test_check`` asks for it.
    """
    refuse = settings.test_check == "refuse"
    if refuse and not data.lists.test:
        raise UserError(
            "a comparison needs a test part: subjects that neither trained nor chose the weights",
            f"{data.lists}",
            "Label ten subjects or more and leave --test_fraction above 0, or state a test part in a list",
        )
    write_text(file, "".join(f"{s}\n" for part in ("test", "validation") for s in data.lists.subjects(part)))
    stored = settings_of(settings.pretrained)
    marks = exposure(stored)
    parts = {part: seen_subjects(getattr(data.lists, part), marks) for part in ("test", "validation")}
    if not any(parts.values()):
        return
    through = " by the diffusion model behind its samples" if stored.get("through_samples") else ""
    again = f"Train that model without the subjects in {file}, then pre-train again"
    again = again if through else f"Pre-train again with --held_out {file}"
    error = UserError(
        "test and validation subjects must be new to the pre-trained weights, else figures are too good",
        "; ".join(f"{len(i)} {part} subjects were trained on{through} ({shown(i)})" for part, i in parts.items() if i),
        f"{again}; where the folder and the list, if any, are the same, also with "
        f"--validation_fraction {settings.validation_fraction:g} --test_fraction {settings.test_fraction:g}. Patients "
        "who only share these ids need ids of their own in a list",
    )
    if refuse:
        raise error
    logger.warning("WARNING: %s", error)


def warn_of_other_volumes(settings: Settings, data: SegmentationData) -> None:
    """Warn where pre-training mapped intensities otherwise or saw voxels of another size, with what to pass."""
    stored = settings_of(settings.pretrained)
    if settings.dataset_dir is None or "intensity" not in stored:
        return
    before, now = _mapping(stored), _mapping(settings.values)
    if before != now:
        logger.warning(
            "WARNING: pre-training mapped intensities by %s, this run by %s: the weights expect the first. Pass %s.",
            *(before, now, _mapping_options(stored)),
        )
    sizes = stored.get("output_spacing")
    if settings.planar or not sizes or list(stored.get("image_size", (0, 0, 0)))[2] == 1:
        return
    own = settings.spacing or _spacing(data.lists.train[0], settings.orientation)
    if any(max(a / b, b / a) > SAME_SPACING for a, b in zip(sizes, own, strict=True)):
        logger.warning(
            "WARNING: pre-training saw voxels of %s mm, this run of %s mm. Pass --spacing %s.",
            *(_edges(sizes), _edges(own), f'"{[round(float(n), 3) for n in sizes]}"'),
        )


def _mapping(values: Mapping[str, Any]) -> str:
    mode = values["intensity"]
    window = [float(n) for n in values.get("window") or ()]
    if mode in RELATIVE or (mode == "window" and window == RELATIVE_WINDOW):
        return "the values of each volume (percentile or minmax)"
    return f"window {window}" if mode == "window" else mode


def _mapping_options(stored: Mapping[str, Any]) -> str:
    mode = stored["intensity"]
    window = [float(n) for n in stored.get("window") or ()]
    if mode == "window" and window != RELATIVE_WINDOW:
        return f'--intensity window --window "{window}"'
    return f"--intensity {mode if mode != 'window' else RELATIVE[0]}"


def _spacing(item: Mapping[str, Any], orientation: str) -> list[float]:
    """Voxel edges of an image along the axes of the network, mm."""
    affine = read_header(item["image"], item.get("series_uid")).affine
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    along = nibabel.orientations.io_orientation(affine)[:, 0].astype(int).tolist()
    wanted = [next(n for n, pair in enumerate(OPPOSITES) if code in pair) for code in orientation]
    return [float(edges[along.index(axis)]) for axis in wanted]


def _edges(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)
