"""From a folder to MONAI data lists: volumes found, split by subject, in a fixed order, with a fingerprint."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_diffusion.data.dicom import choose_series
from medical_diffusion.data.discovery import VolumeFile, check_dataset_dir, find_volumes
from medical_diffusion.data.manifest import Manifest, SplitRule, load_manifest
from medical_diffusion.data.split import split_subjects
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

_PARTS = ("train", "validation", "test")
_SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class DataList:
    """Items for MONAI datasets: ``{"image": path, "subject": id}``, with "label" and "series_uid" where there are any.

    Attributes:
        fingerprint: changes with the names, sizes, first and last bytes of the files and with the split; a copied
            folder keeps it.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    fingerprint: str

    def __str__(self) -> str:
        parts = []
        for name in _PARTS:
            items = getattr(self, name)
            parts.append(f"{name} {len(items)} volumes of {len({i['subject'] for i in items})} subjects")
        return "; ".join(parts)


def build_datalist(
    dataset_dir: str | Path,
    manifest: str | Path | None = None,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    salt: str | None = None,
) -> DataList:
    """Find the volumes of a folder and split them by subject.

    Args:
        dataset_dir: folder of the volumes.
        manifest: path or packaged name of a manifest; the folder's own layout otherwise.
        validation_fraction, test_fraction, salt: of the split; default: the manifest's, else 0.1, 0.1 and "".

    Raises:
        UserError: as ``find_volumes``, ``load_manifest`` and ``split_subjects``.
    """
    root = check_dataset_dir(dataset_dir)
    rules = load_manifest(manifest) if manifest is not None else None
    volumes = find_volumes(root, rules)
    parts = _assign(volumes, rules, validation_fraction, test_fraction, salt)
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in _PARTS}
    digest = hashlib.sha256()
    for volume in volumes:
        part = parts[volume.subject]
        item = {"image": str(volume.path), "subject": volume.subject}
        if volume.series_uid:
            item["series_uid"] = volume.series_uid
        if volume.label:
            item["label"] = str(volume.label)
        lists[part].append(item)
        digest.update(f"{part}\n{volume.path.relative_to(root).as_posix()}\n{_content_mark(volume)}\n".encode())
    data = DataList(**lists, fingerprint=digest.hexdigest())
    logger.info("Volumes of %s: %s", root, data)
    return data


def _assign(
    volumes: list[VolumeFile],
    manifest: Manifest | None,
    validation_fraction: float | None,
    test_fraction: float | None,
    salt: str | None,
) -> dict[str, str]:
    """Part of each subject: the manifest's where its files state it, else by hash."""
    stated: dict[str, str] = {}
    for volume in volumes:
        if volume.split is None:
            continue
        if stated.setdefault(volume.subject, volume.split) != volume.split:
            raise UserError(
                "all volumes of a subject must be in one split",
                f"subject {volume.subject} in {stated[volume.subject]} and {volume.split}",
                "Correct the manifest's files",
            )
    if not stated:
        rule = manifest.split if manifest is not None else SplitRule()
        return split_subjects(
            (volume.subject for volume in volumes),
            rule.validation if validation_fraction is None else validation_fraction,
            rule.test if test_fraction is None else test_fraction,
            rule.salt if salt is None else salt,
        )
    unstated = [volume.path.name for volume in volumes if volume.split is None]
    if unstated:
        raise UserError("either all files of a manifest or none state their split", f"none for {unstated[0]}")
    missing = [part for part in ("train", "validation") if part not in stated.values()]
    if missing:
        raise UserError(f"a split needs volumes for {' and '.join(missing)}", remedy="Correct the manifest's files")
    return stated


def _content_mark(volume: VolumeFile) -> str:
    """Size with the first and last bytes (a gzip file ends with its checksum); names and sizes for a DICOM folder."""
    if volume.path.is_dir():
        files = choose_series(volume.path, volume.series_uid).files if volume.series_uid else None
        names = sorted(Path(f).name for f in files) if files else sorted(os.listdir(volume.path))
        return ",".join(f"{name}:{os.path.getsize(volume.path / name)}" for name in names)
    size = volume.path.stat().st_size
    with volume.path.open("rb") as file:
        sample = file.read(_SAMPLED_BYTES)
        file.seek(max(0, size - _SAMPLED_BYTES))
        sample += file.read()
    return f"{size}:{hashlib.sha256(sample).hexdigest()}"
