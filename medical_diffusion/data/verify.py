"""Checking a whole dataset: every header, and every voxel unless only headers are asked for, all faults at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medical_diffusion.data.checks import (
    MAX_FAULTS_SHOWN,
    Fault,
    VolumeHeader,
    header_faults,
    raise_faults,
    voxel_faults,
)
from medical_diffusion.data.dicom import choose_series, series_faults
from medical_diffusion.data.discovery import VolumeFile, check_dataset_dir, scan_volumes
from medical_diffusion.data.headers import read_header
from medical_diffusion.data.manifest import load_manifest
from medical_diffusion.data.reader import has_valid_checksum, is_intact, load_volume
from medical_diffusion.errors import UserError


@dataclass(frozen=True)
class VolumeRecord:
    """What the check learnt of one volume; ``intensity`` is (minimum, maximum), absent when only headers were read."""

    volume: VolumeFile
    header: VolumeHeader | None
    intensity: tuple[float, float] | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class VerificationReport:
    """Result of ``verify_dataset``: ``str(report)`` is a readable table."""

    dataset_dir: Path
    records: tuple[VolumeRecord, ...]
    faults: tuple[Fault, ...]
    headers_only: bool

    def raise_if_faulty(self) -> None:
        """Raise one error that lists the faults (the first 20 in full).

        Raises:
            UserError: there are faults.
        """
        raise_faults(
            self.faults,
            f"every volume in {self.dataset_dir} must be valid",
            "Correct or remove these files; `python -m medical_diffusion data verify --dataset_dir` checks again",
        )

    def __str__(self) -> str:
        lines = [f"{self.dataset_dir}: {'headers' if self.headers_only else 'headers and voxels'} checked"]
        lines += [f"  {name:<14}{value}" for name, value in self._summary()]
        lines += [f"  - {fault}" for fault in self.faults[:MAX_FAULTS_SHOWN]]
        if len(self.faults) > MAX_FAULTS_SHOWN:
            lines.append(f"  - and {len(self.faults) - MAX_FAULTS_SHOWN} more")
        return "\n".join(lines)

    def _summary(self) -> list[tuple[str, str]]:
        kinds: dict[str, int] = {}
        for record in self.records:
            kinds[record.volume.kind] = kinds.get(record.volume.kind, 0) + 1
        rows = [
            ("volumes", f"{len(self.records)} ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})"),
            ("subjects", str(len({record.volume.subject for record in self.records}))),
        ]
        headers = [record.header for record in self.records if record.header is not None]
        if headers:
            rows.append(("shape", _ranges([header.spatial_shape for header in headers]) + " voxels"))
            rows.append(("spacing", _ranges([header.spacing for header in headers]) + " mm"))
        ranges = [record.intensity for record in self.records if record.intensity is not None]
        if ranges:
            low, high = np.asarray(ranges).T
            median = f"median volume {np.median(low):g} to {np.median(high):g}"
            rows.append(("intensity", f"{low.min():g} to {high.max():g}, {median}"))
        rows.append(("faults", str(len(self.faults)) if self.faults else "none"))
        return rows


def verify_dataset(
    dataset_dir: str | Path,
    manifest: str | Path | None = None,
    headers_only: bool = False,
    progress: bool = True,
    allow_planar: bool = False,
) -> VerificationReport:
    """Check every volume of a dataset and collect all faults.

    Headers: three axes, one value a voxel, sound affine, a complete file (by its length), evenly spaced DICOM slices.
    Voxels, in addition: readable to the end, gzip and manifest checksums, finite, not constant.

    Args:
        headers_only: leave the voxels unread: seconds instead of minutes, done before every training.
        progress: show a progress bar.
        allow_planar: images of depth 1 are welcome; volumes of depth 1 among deeper ones are a fault all the same.

    Raises:
        UserError: the folder or the manifest cannot be used at all.
    """
    root = check_dataset_dir(dataset_dir)
    volumes, faults = scan_volumes(root, load_manifest(manifest) if manifest is not None else None)

    def check(volume: VolumeFile) -> VolumeRecord:
        return check_volume(volume, headers_only, allow_planar)

    # Decompression frees the interpreter, so that threads help; two hold the memory to two volumes.
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        results = pool.map(check, volumes)
        records = tuple(tqdm(results, "Checking volumes", len(volumes), unit="vol", disable=not progress))
    faults += [fault for record in records for fault in record.faults]
    if allow_planar:
        faults += _mixed_depth_faults(records)
    return VerificationReport(root, records, tuple(faults), headers_only)


def check_volume(volume: VolumeFile, headers_only: bool = False, allow_planar: bool = False) -> VolumeRecord:
    """Check one volume; never raises for what is wrong with its file."""
    path, header, intensity = volume.path, None, None
    faults: list[Fault] = []
    try:
        if path.is_dir():
            faults += series_faults(path, choose_series(path, volume.series_uid))
        header = read_header(path, volume.series_uid)
        faults += header_faults(path, header, allow_planar)
        if not faults and not is_intact(path):
            faults.append(_damaged(path, "the file ends early, or its compressed content is damaged"))
        if volume.label is not None and not faults:
            faults += _label_faults(volume.label, header)
        if not faults and not headers_only:
            if not has_valid_checksum(path):
                faults.append(_damaged(path, "its gzip checksum does not fit its content"))
            elif volume.sha256 and _sha256(path) != volume.sha256:
                remedy = "Fetch the file of the manifest's version"
                faults.append(Fault(path, "a file must have its manifest's sha256", _sha256(path), remedy))
            else:
                voxels = load_volume(path, volume.series_uid, allow_planar).numpy()
                faults += voxel_faults(path, voxels)
                if not faults:
                    intensity = (float(voxels.min()), float(voxels.max()))
    except UserError as error:
        faults.append(Fault.from_error(path, error))
    return VolumeRecord(volume, header, intensity, tuple(faults))


def _label_faults(label: Path, image: VolumeHeader) -> list[Fault]:
    header = read_header(label)
    if header.spatial_shape != image.spatial_shape:
        value = f"{header.spatial_shape} for an image of {image.spatial_shape}"
        return [Fault(label, "a label must have the shape of its image", value, "Resample the label to its image")]
    return []


def _mixed_depth_faults(records: Sequence[VolumeRecord]) -> list[Fault]:
    sound = [record for record in records if record.header is not None and not record.faults]
    planar = [r.volume.path for r in sound if r.header is not None and r.header.spatial_shape[2] == 1]
    if not planar or len(planar) == len(sound):
        return []
    rule = "a dataset must hold either images of depth 1 or volumes"
    return [Fault(path, rule, f"{len(planar)} of {len(sound)} have depth 1", "Separate them") for path in planar]


def _ranges(rows: Sequence[Sequence[float]]) -> str:
    """Smallest to largest per axis ("34-43 x 47-59 x 28-47"), one number where they agree."""
    lowest, highest = np.min(rows, axis=0), np.max(rows, axis=0)
    pairs = zip(lowest, highest, strict=True)
    return " x ".join(f"{low:.4g}" if np.isclose(low, high) else f"{low:.4g}-{high:.4g}" for low, high in pairs)


def _damaged(path: Path, how: str) -> Fault:
    return Fault(path, "an image file must be complete", how, "Copy or download the file again, or remove it")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
