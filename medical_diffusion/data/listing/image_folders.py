"""Which files of a folder are the images of a set: volumes or flat images, samples without their previews, classes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.class_folders import label_by_folder
from medical_diffusion.data.listing.discovery import scan_volumes
from medical_diffusion.data.listing.entries import locate
from medical_diffusion.data.listing.tables import read_table
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.formats import is_flat_format, kind_of
from medical_diffusion.data.reading.headers import read_header

CLASS_FOLDERS = "folders"
SIDECARS = "sidecars"
SAMPLE_NAME = re.compile(r"sample_\d+\.")


def find_images(root: Path, labels: str | Path | None, planar: bool | None) -> tuple[list[VolumeFile], list[Fault]]:
    """The images below ``root``, and what can not be one.

    Args:
        root: folder.
        labels: "folders", "sidecars" or a table, see :class:`medical_diffusion.data.image_set.ImageSet`.
        planar: whether flat images are meant; found out where None.

    Raises:
        UserError: the table of labels can not be read.
    """
    planar = _is_planar(root) if planar is None else planar
    if labels is not None and str(labels) not in (CLASS_FOLDERS, SIDECARS):
        table = Path(str(labels)).expanduser()
        table = root / table if not table.exists() and (root / table).is_file() else table
        volumes, faults = locate(read_table(table), table, root, planar)
        return sorted(volumes, key=lambda volume: volume.path.as_posix()), faults
    volumes, faults = scan_volumes(root, planar=planar)
    volumes = _samples_only(volumes)
    if labels == CLASS_FOLDERS:
        volumes, more = label_by_folder(root, volumes)
        return volumes, faults + more
    return ([_with_sidecar(volume) for volume in volumes] if labels == SIDECARS else volumes), faults


def _is_planar(root: Path) -> bool:
    """Whether flat images are meant: there are some, and no volume; DICOM files of one slice each."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    kinds = {kind_of(path) for path in files}
    if kinds & {"nifti", "nrrd", "metaimage", "numpy"}:
        return False
    if any(is_flat_format(path) for path in files):
        return True
    series = scan_volumes(root)[0] if "dicom" in kinds else []
    return bool(series) and all(read_header(v.path, v.series_uid).spatial_shape[2] == 1 for v in series)


def _samples_only(volumes: list[VolumeFile]) -> list[VolumeFile]:
    """Without pictures that lie beside ``sample_<seed>`` files and are none."""
    samples = [volume for volume in volumes if SAMPLE_NAME.match(volume.path.name)]
    generated = {volume.path.parent for volume in samples if _sidecar(volume.path).is_file()}
    return [v for v in volumes if v.path.parent not in generated or SAMPLE_NAME.match(v.path.name)]


def _sidecar(path: Path) -> Path:
    name = path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
    return path.with_name(f"{name}.json")


def _with_sidecar(volume: VolumeFile) -> VolumeFile:
    try:
        name = json.loads(_sidecar(volume.path).read_text(encoding="utf-8")).get("class_name")
    except (OSError, ValueError, AttributeError):
        name = None
    return replace(volume, class_name=None if name is None else str(name))
