"""Checking a whole dataset: labels and splits, every header, every voxel unless only headers are asked for.

All faults are told at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medical_diffusion.data.checks import (
    MAX_FAULTS_SHOWN,
    Fault,
    VolumeHeader,
    grouped,
    header_faults,
    raise_faults,
    voxel_faults,
)
from medical_diffusion.data.listing.classes import count_labels
from medical_diffusion.data.listing.source import DataSource, stated_split
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.dicom import choose_series, series_faults
from medical_diffusion.data.reading.flat_image import channel_error, check_channels, is_grey
from medical_diffusion.data.reading.headers import read_header
from medical_diffusion.data.reading.images import read_image
from medical_diffusion.data.reading.reader import has_valid_checksum, is_intact, load_volume
from medical_diffusion.errors import UserError

#: RGB files that a check of headers decodes where grey is asked for.
COLOURS_SAMPLED = 20


@dataclass(frozen=True)
class VolumeRecord:
    """What the check learnt of one volume; ``intensity`` is (minimum, maximum), absent when only headers were read."""

    volume: VolumeFile
    header: VolumeHeader | None
    intensity: tuple[float, float] | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class VerificationReport:
    """Result of ``verify_dataset``: ``str(report)`` is a readable table.

    ``records`` hold the faults of each file, ``faults`` all of them, those that many files share as one.
    """

    dataset_dir: Path
    records: tuple[VolumeRecord, ...]
    faults: tuple[Fault, ...]
    headers_only: bool
    label_counts: Mapping[str, int] = field(default_factory=dict)

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
        if self.label_counts:
            rows.append(("classes", ", ".join(f"{name} {count}" for name, count in self.label_counts.items())))
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
    datalist: str | Path | None = None,
    class_folders: bool = False,
    classes: Sequence[str] | None = None,
    planar: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    subject_column: str | None = None,
    labels: bool | None = None,
    channels: int | None = None,
    convert_channels: bool = False,
) -> VerificationReport:
    """Check every volume of a dataset and collect all faults.

    Headers: three axes, one value a voxel, sound affine, a complete file (by its length), evenly spaced DICOM slices;
    grey or RGB as asked for. Voxels, in addition: readable to the end, gzip and manifest checksums, finite, not
    constant. Labels: none missing or unknown, two classes where they are asked for, no subject in two splits.

    Args:
        headers_only: leave the voxels unread: seconds instead of minutes, done before every training. Of RGB files in a
            grey bundle a few are decoded all the same, since equal channels are grey.
        progress: show a progress bar.
        allow_planar: images of depth 1 are welcome; volumes of depth 1 among deeper ones are a fault all the same.
        planar: flat image files count, each DICOM file is an image of its own, and volumes are a fault.
        datalist, class_folders, classes, image_column, label_column, subject_column, labels: as of ``build_datalist``.
        channels, convert_channels: as of ``load_volume``.

    Raises:
        UserError: the folder, the manifest or the list cannot be used at all.
    """
    check_channels(channels)
    source = DataSource.of(
        dataset_dir, manifest, datalist, class_folders, planar, image_column, label_column, subject_column
    )
    volumes, faults = source.scan()
    label_counts: dict[str, int] = {}
    try:
        stated_split(volumes)
        names, numbers = source.resolve_classes(volumes, classes, labels)
        label_counts = count_labels(names, numbers)
    except UserError as error:
        faults.append(Fault.from_error(source.table or source.root, error))
    is_flat_welcome = allow_planar or planar

    def check(volume: VolumeFile) -> VolumeRecord:
        record = check_volume(volume, headers_only, is_flat_welcome, channels, convert_channels)
        return _refuse_depth(record) if planar else record

    # Decompression frees the interpreter, so that threads help; two hold the memory to two volumes.
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        results = pool.map(check, volumes)
        records = tuple(tqdm(results, "Checking volumes", len(volumes), unit="vol", disable=not progress))
    faults += [fault for record in records for fault in record.faults]
    if is_flat_welcome and not planar:
        faults += _mixed_depth_faults(records)
    if headers_only and channels == 1 and not convert_channels:
        faults += _colour_faults(records)
    return VerificationReport(source.root, records, tuple(grouped(faults)), headers_only, label_counts)


def check_volume(
    volume: VolumeFile,
    headers_only: bool = False,
    allow_planar: bool = False,
    channels: int | None = None,
    convert_channels: bool = False,
) -> VolumeRecord:
    """Check one volume; never raises for what is wrong with its file."""
    path, header, intensity = volume.path, None, None
    faults: list[Fault] = []
    try:
        if path.is_dir():
            faults += series_faults(path, choose_series(path, volume.series_uid))
        header = read_header(path, volume.series_uid)
        faults += header_faults(path, header, allow_planar)
        if not faults and channels == 3 and header.channels == 1 and not convert_channels:
            faults.append(Fault.from_error(path, channel_error(path, 1, 3)))
        if not faults and not is_intact(path):
            faults.append(_damaged(path, "the file ends early, or its compressed content is damaged"))
        for mask in filter(None, (volume.label, volume.mask)):
            faults += _mask_faults(mask, path, header) if not faults else []
        if not faults and not headers_only:
            if not has_valid_checksum(path):
                faults.append(_damaged(path, "its gzip checksum does not fit its content"))
            elif volume.sha256 and _sha256(path) != volume.sha256:
                remedy = "Fetch the file of the manifest's version"
                faults.append(Fault(path, "a file must have its manifest's sha256", _sha256(path), remedy))
            else:
                voxels = load_volume(path, volume.series_uid, allow_planar, channels, convert_channels).numpy()
                faults += voxel_faults(path, voxels)
                if not faults:
                    intensity = (float(voxels.min()), float(voxels.max()))
    except UserError as error:
        faults.append(Fault.from_error(path, error))
    return VolumeRecord(volume, header, intensity, tuple(faults))


def _mask_faults(mask: Path, path: Path, image: VolumeHeader) -> list[Fault]:
    """Faults of a mask that does not lie on its image."""
    header, remedy = read_header(mask), "Resample the mask to its image"
    if header.spatial_shape != image.spatial_shape:
        value = f"{header.spatial_shape} for {image.spatial_shape} of {path}"
        return [Fault(mask, "a mask must have the shape of its image", value, remedy)]
    # Text headers (NRRD, DICOM) round: corners of a long volume may lie a hundredth of a voxel apart.
    if not np.allclose(header.affine, image.affine, rtol=1e-4, atol=1e-2 * min(image.spacing)):
        value = f"{_rows(header)} for {_rows(image)} of {path}"
        return [Fault(mask, "a mask must have the affine of its image", value, remedy)]
    return []


def _rows(header: VolumeHeader) -> str:
    return str(np.round(header.affine[:3], 3).tolist())


def _mixed_depth_faults(records: Sequence[VolumeRecord]) -> list[Fault]:
    sound = [record for record in records if record.header is not None and not record.faults]
    planar = [r.volume.path for r in sound if r.header is not None and r.header.spatial_shape[2] == 1]
    if not planar or len(planar) == len(sound):
        return []
    rule = "a dataset must hold either images of depth 1 or volumes"
    return [Fault(path, rule, f"{len(planar)} of {len(sound)} have depth 1", "Separate them") for path in planar]


def _refuse_depth(record: VolumeRecord) -> VolumeRecord:
    header = record.header
    if record.faults or header is None or header.spatial_shape[2] == 1:
        return record
    path, value = record.volume.path, f"a volume of shape {header.shape}"
    remedy = "Extract slices to files of their own, or use a bundle for volumes"
    return replace(record, faults=(Fault(path, "an image must be flat here", value, remedy),))


def _colour_faults(records: Sequence[VolumeRecord]) -> list[Fault]:
    """Faults of the RGB files, evenly picked, that are decoded to learn whether they are grey."""
    suspects = [r for r in records if r.header is not None and r.header.channels == 3 and not r.faults]
    sample = suspects[:: max(1, len(suspects) // COLOURS_SAMPLED)]
    few = f" ({len(sample)} of {len(suspects)} RGB files were looked at)" if len(sample) < len(suspects) else ""
    faults = []
    for record in sample:
        path = record.volume.path
        try:
            if not is_grey(read_image(path, record.volume.series_uid).pixels):
                fault = Fault.from_error(path, channel_error(path, 3, 1))
                faults.append(replace(fault, value=fault.value + few))
        except UserError as error:
            faults.append(Fault.from_error(path, error))
    return faults


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
