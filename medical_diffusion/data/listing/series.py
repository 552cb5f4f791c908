"""The DICOM series that make up a collection, by patient: the file beside a manifest, and the choice among found ones.

The file is written from the index of the NCI Imaging Data Commons (``medical_diffusion.data.acquisition.series_index``)
and states its version. A full copy of a collection holds other series of the same patients (dynamic phases,
radiographs); the listed ones are the data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medical_diffusion.data.listing.manifest import Manifest
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.dicom import choose_series
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """One series of the Imaging Data Commons.

    Attributes:
        uid: SeriesInstanceUID.
        files: number of its DICOM files.
        size: bytes of them all.
    """

    uid: str
    patient: str
    modality: str
    files: int
    size: int


@dataclass(frozen=True)
class SeriesList:
    """The series of a manifest, ordered by patient; ``idc_version`` is the index they were taken from."""

    idc_version: str
    series: tuple[Series, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """Ids of the patients, each once, in order."""
        return tuple(dict.fromkeys(series.patient for series in self.series))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(series.size for series in self.series)

    def of_patients(self, count: int) -> SeriesList:
        """The series of the first ``count`` patients."""
        chosen = set(self.patients[:count])
        return SeriesList(self.idc_version, tuple(series for series in self.series if series.patient in chosen))


def load_series(manifest: Manifest) -> SeriesList | None:
    """The series that a manifest names; ``None`` where it names none.

    Raises:
        UserError: the file is missing or damaged.
    """
    if "series" not in manifest.fields:
        return None
    file = manifest.folder / manifest.fields["series"]["file"]
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        series = tuple(
            Series(uid=uid, patient=patient, modality=modality, files=int(files), size=int(size))
            for patient, rows in fields["patients"].items()
            for uid, modality, files, size in rows
        )
        return SeriesList(str(fields["idc_version"]), series)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"manifest {manifest.name} needs its file of series",
            f"{file} ({type(error).__name__}: {error})",
            "Install the package again, or write the file anew from idc-index",
        ) from error


def choose_listed(manifest: Manifest, volumes: Sequence[VolumeFile]) -> list[VolumeFile]:
    """Without the other series of patients of whom a listed one is there; patients without one keep theirs."""
    listed = load_series(manifest)
    if listed is None or not any(volume.kind == "dicom" for volume in volumes):
        return list(volumes)
    known = {series.uid for series in listed.series}
    found = [volume.path.is_dir() and choose_series(volume.path, volume.series_uid).uid in known for volume in volumes]
    patients = {volume.subject for volume, is_listed in zip(volumes, found, strict=True) if is_listed}
    kept = [
        volume
        for volume, is_listed in zip(volumes, found, strict=True)
        if is_listed or volume.kind != "dicom" or volume.subject not in patients
    ]
    if len(kept) < len(volumes):
        others = len(volumes) - len(kept)
        logger.info("Manifest %s: %d series that it does not list are left out", manifest.name, others)
    return kept
