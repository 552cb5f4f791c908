"""Masks (segmentations) of images: found where the manifest says, and told where one of the two is missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.manifest import Manifest, inside
from medical_diffusion.data.listing.tables import shown
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.formats import stem_of

logger = logging.getLogger(__name__)


def add_masks(root: Path, manifest: Manifest, volumes: Sequence[VolumeFile]) -> tuple[list[VolumeFile], list[Fault]]:
    """Volumes with their masks where these are there.

    An image without a mask and a mask without an image are faults where the manifest requires masks, else a mask
    without an image is a warning.

    Raises:
        UserError: a mask is a link that leads outside.
    """
    rule = manifest.masks
    if rule is None:
        return list(volumes), []
    masked: list[VolumeFile] = []
    faults: list[Fault] = []
    for volume in volumes:
        fields = {"stem": stem_of(volume.path), "subject": manifest.subject_of(_searched_path(root, volume.path))}
        expected = [path.format(**fields) for path in rule.paths]
        mask = next((path for path in (inside(root, name) for name in expected) if path.is_file()), None)
        if mask is None and rule.required:
            stated = f"every image of manifest {manifest.name} must have a mask"
            faults.append(Fault(volume.path, stated, f"none at {' or '.join(expected)}", "Add it, or remove the image"))
        masked.append(replace(volume, mask=mask))
    used = {volume.mask for volume in masked}
    spare = sorted(path for pattern in rule.paths for path in root.glob(_any(pattern)) if path not in used)
    if spare and rule.required:
        stated = f"every mask of manifest {manifest.name} must have an image"
        faults += [Fault(path, stated, "no image of its name or subject", "Add the image") for path in spare]
    elif spare:
        names = shown([path.relative_to(root).as_posix() for path in spare[:1]])
        logger.warning("Manifest %s: %d masks have no image, the first %s", manifest.name, len(spare), names)
    return masked, faults


def _searched_path(root: Path, path: Path) -> str:
    """The path that ``layout.subject`` is searched in; folders of series end with a slash."""
    return path.relative_to(root).as_posix() + ("/" if path.is_dir() else "")


def _any(pattern: str) -> str:
    return pattern.format(stem="*", subject="*")
