"""Which files of a folder are the images of a set: volumes or flat images, samples without their previews, classes.

What could be an image and does not count is listed with the reason: nothing but the preview that is written beside
samples is left out without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.class_folders import label_by_folder
from medical_diffusion.data.listing.discovery import DATASET_DIR, in_label_folder, scan_volumes, walk_files
from medical_diffusion.data.listing.entries import locate
from medical_diffusion.data.listing.exposure import DETACHED, named_files
from medical_diffusion.data.listing.tables import read_table
from medical_diffusion.data.listing.unread_formats import image_suffix
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.formats import is_flat_format, kind_of
from medical_diffusion.data.reading.headers import read_header

CLASS_FOLDERS = "folders"
SIDECARS = "sidecars"
SAMPLE_NAME = re.compile(r"sample_\d+\.")
PREVIEW = "preview.png"
RELATIVE_UNIT = "relative, 0 to 1"
"""What the JSON of a sample states where its values are of no physical scale."""


@dataclass(frozen=True)
class LeftOut:
    """A file that could be an image, and why it does not count."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class FoundImages(NamedTuple):
    """The images of a folder, what is broken, and what was left out."""

    volumes: list[VolumeFile]
    faults: list[Fault]
    ignored: list[LeftOut]


def find_images(root: Path, labels: str | Path | None, planar: bool | None, option: str = DATASET_DIR) -> FoundImages:
    """The images below ``root``, what can not be one, and what does not count. A table of labels says what belongs.

    Args:
        root: folder.
        labels: "folders", "sidecars" or a table, see :class:`medical_diffusion.data.image_set.ImageSet`.
        planar: whether flat images are meant; found out where None.
        option: what errors call the folder.

    Raises:
        UserError: the table of labels can not be read.
    """
    planar = _is_planar(root) if planar is None else planar
    if labels is not None and str(labels) not in (CLASS_FOLDERS, SIDECARS):
        table = Path(str(labels)).expanduser()
        table = root / table if not table.exists() and (root / table).is_file() else table
        volumes, faults = locate(read_table(table), table, root, planar)
        return FoundImages(sorted(volumes, key=lambda volume: volume.path.as_posix()), faults, [])
    volumes, faults = scan_volumes(root, planar=planar, option=option)
    generated = _sample_folders(volumes)
    ignored = _of_another_kind(root, planar, generated)
    ignored += [LeftOut(v.path, "it lies beside samples") for v in volumes if _is_beside(v.path, generated)]
    volumes = [v for v in volumes if v.path.parent not in generated or SAMPLE_NAME.match(v.path.name)]
    if labels == CLASS_FOLDERS:
        volumes, more = label_by_folder(root, volumes)
        faults = faults + more
    elif labels == SIDECARS:
        volumes = [_with_sidecar(volume) for volume in volumes]
    return FoundImages(volumes, faults, sorted(ignored, key=lambda left: left.path.as_posix()))


def _is_planar(root: Path) -> bool:
    """Whether flat images are meant: there are some, and no volume; DICOM files of one slice each."""
    files = list(walk_files(root))
    kinds = {kind_of(path) for path in files}
    if kinds & {"nifti", "nrrd", "metaimage", "numpy"}:
        return False
    if any(is_flat_format(path) for path in files):
        return True
    series = scan_volumes(root)[0] if "dicom" in kinds else []
    return bool(series) and all(read_header(v.path, v.series_uid).spatial_shape[2] == 1 for v in series)


def _sample_folders(volumes: list[VolumeFile]) -> set[Path]:
    """Folders of ``sample_<seed>`` files with their JSON."""
    samples = [volume for volume in volumes if SAMPLE_NAME.match(volume.path.name)]
    return {volume.path.parent for volume in samples if _sidecar(volume.path).is_file()}


def _is_beside(path: Path, generated: set[Path]) -> bool:
    """Whether a file in a folder of samples is neither a sample nor their preview."""
    return path.parent in generated and not SAMPLE_NAME.match(path.name) and path.name != PREVIEW


def _of_another_kind(root: Path, planar: bool, generated: set[Path]) -> list[LeftOut]:
    """Files below folders of labels, flat images beside volumes, and images of formats that are not read."""
    found = []
    files = list(walk_files(root))
    voxels = {named for path in files if path.suffix.lower() in DETACHED for named in named_files(path)}
    for path in files:
        if kind_of(path, planar) is not None:
            if in_label_folder(root, path):
                found.append(LeftOut(path, "its folder is named as one of labels"))
        elif is_flat_format(path) and not (path.parent in generated and path.name == PREVIEW):
            found.append(LeftOut(path, "flat images do not count beside volumes"))
        elif path not in voxels and not is_flat_format(path) and (suffix := image_suffix(path)):
            found.append(LeftOut(path, f"{suffix} files are not read"))
    return found


def _sidecar(path: Path) -> Path:
    name = path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
    return path.with_name(f"{name}.json")


def are_relative(volumes: Sequence[VolumeFile]) -> bool:
    """Whether the JSON beside every volume says that its values are relative, 0 to 1."""
    return all(_stated(volume, "unit") == RELATIVE_UNIT for volume in volumes)


def _stated(volume: VolumeFile, key: str) -> Any:
    """What the JSON beside a sample says; None where it says nothing."""
    try:
        return json.loads(_sidecar(volume.path).read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None


def _with_sidecar(volume: VolumeFile) -> VolumeFile:
    name = _stated(volume, "class_name")
    return replace(volume, class_name=None if name is None else str(name))
