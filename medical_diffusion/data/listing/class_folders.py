"""A folder per class: ``[train/]CLASS/[subject/]image``; the folder above the images names their class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.discovery import is_container, subject_by_path
from medical_diffusion.data.listing.tables import split_of
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.formats import stem_of

_BIDS = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)")


def label_by_folder(root: Path, volumes: Iterable[VolumeFile]) -> tuple[list[VolumeFile], list[Fault]]:
    """Volumes with class, split and subject by their folders; faults for those that lie in no class folder.

    The first folder below ``root`` that is no container (images, train, val, test) is the class; folders train, val
    and test, above or below it, fix the split. The subject is the DICOM patient, the BIDS entity, a folder within the
    class, or the name of the file; where folders fix the split that name goes with its folders, since one numbering
    a split is usual and tells nothing of patients.
    """
    labelled: list[VolumeFile] = []
    faults: list[Fault] = []
    for volume in volumes:
        relative = volume.path.relative_to(root)
        parts = relative.parts if volume.path.is_dir() else relative.parts[:-1]
        folders = [part for part in parts if not is_container(part)]
        split = next((name for part in parts if is_container(part) and (name := split_of(part))), None)
        if not folders:
            rule = "every image must lie in the folder of its class"
            faults.append(Fault(volume.path, rule, f"{relative} in {root}", "Move it, or omit class_folders"))
            continue
        subject = _subject(root, volume, relative, folders, split)
        labelled.append(replace(volume, class_name=folders[0], split=split, subject=subject))
    return labelled, faults


def _subject(root: Path, volume: VolumeFile, relative: Path, folders: list[str], split: str | None) -> str:
    if volume.kind == "dicom" and volume.subject != subject_by_path(root, volume.path):
        return volume.subject  # the patient that the header names
    bids = _BIDS.search(relative.as_posix())
    if bids:
        return bids.group(1)
    if len(folders) > 1:
        return folders[1]
    return stem_of(volume.path) if split is None else relative.with_name(stem_of(volume.path)).as_posix()
