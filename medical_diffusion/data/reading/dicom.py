"""DICOM series in folders: which series there are, and where each slice lies in space.

A slice's pixel (row ``r``, column ``c``) lies at ``P + IOP[0:3] * column_spacing * c + IOP[3:6] * row_spacing * r``
(DICOM PS3.3, C.7.6.2.1.1). Slices are ordered along the normal ``IOP[0:3] x IOP[3:6]``, and the step between slices
is the mean difference of their positions, so that a tilted gantry keeps its sheared affine. Only headers are read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medical_diffusion.data.checks import Fault
from medical_diffusion.errors import UserError

#: Modalities of objects that go with images and are none (segmentations, plans, reports).
NON_IMAGE_MODALITIES = frozenset(
    {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "SR", "PR", "KO", "REG", "RWV", "DOC", "ANN", "FID"}
)
#: A gap between slices that differs from the median by more than this fraction is a fault, not rounding.
SPACING_TOLERANCE = 0.1
_TAGS = (
    "SeriesInstanceUID",
    "Modality",
    "PatientID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
)


@dataclass(frozen=True)
class DicomSlice:
    """Geometry of one DICOM file; lengths in millimetres, LPS axes, ``None`` where the header has no such entry."""

    path: Path
    rows: int
    columns: int
    frames: int
    samples: int
    spacing: tuple[float, float]  # between rows, between columns
    thickness: float
    position: np.ndarray | None
    orientation: np.ndarray | None


@dataclass(frozen=True)
class DicomSeries:
    """One series of one folder, its slices ordered along the slice normal."""

    uid: str
    modality: str
    patient_id: str
    slices: tuple[DicomSlice, ...]

    @property
    def files(self) -> list[str]:
        """Paths of the slices, in their order."""
        return [str(s.path) for s in self.slices]

    @property
    def shape(self) -> tuple[int, ...]:
        """Array shape ``(columns, rows, slices)``, and samples a pixel where there are several."""
        first = self.slices[0]
        depth = first.frames if len(self.slices) == 1 else len(self.slices)
        return (first.columns, first.rows, depth) + ((first.samples,) if first.samples > 1 else ())

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to millimetres in RAS+, ``(4, 4)``."""
        first, last = self.slices[0], self.slices[-1]
        axes = np.array([1.0, 0, 0, 0, 1, 0]) if first.orientation is None else first.orientation
        affine = np.eye(4)
        affine[:3, 0] = axes[:3] * first.spacing[1]
        affine[:3, 1] = axes[3:] * first.spacing[0]
        if len(self.slices) > 1 and first.position is not None and last.position is not None:
            affine[:3, 2] = (last.position - first.position) / (len(self.slices) - 1)
        else:
            affine[:3, 2] = np.cross(axes[:3], axes[3:]) * first.thickness
        affine[:3, 3] = 0.0 if first.position is None else first.position
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM preamble ("DICM" at byte 128)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read_slice(path: Path) -> tuple[tuple[str, str, str], DicomSlice] | None:
    """(series UID, modality, patient) and geometry; ``None`` for a file that is no DICOM image."""
    import pydicom

    try:
        header: Any = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        spacing = header.get("PixelSpacing") or (1.0, 1.0)
        position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
        if "Rows" not in header:
            return None
        geometry = DicomSlice(
            path=path,
            rows=int(header.Rows),
            columns=int(header.Columns),
            frames=int(header.get("NumberOfFrames") or 1),
            samples=int(header.get("SamplesPerPixel") or 1),
            spacing=(float(spacing[0]), float(spacing[1])),
            thickness=float(header.get("SliceThickness") or 1.0),
            position=None if not position else np.asarray(position, dtype=float),
            orientation=None if not orientation else np.asarray(orientation, dtype=float),
        )
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise UserError(
            "a DICOM file must have a readable header",
            f"{path} ({error})",
            "Copy or export the file again, or remove it",
        ) from error
    uid = str(header.get("SeriesInstanceUID") or "without UID")
    return (uid, str(header.get("Modality") or ""), str(header.get("PatientID") or "").strip()), geometry


def dicom_files(folder: Path) -> Iterator[Path]:
    """DICOM files directly in a folder, by name or by preamble, in the order of their names."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
            continue
        suffix = path.suffix.lower()
        named = suffix in {".dcm", ".dicom", ".ima"}
        if named or ((suffix == "" or suffix[1:].isdigit()) and is_dicom(path)):
            yield path


def scan_folder(folder: str | Path) -> list[DicomSeries]:
    """The image series directly in a folder, sorted by UID; empty where there is none.

    Raises:
        UserError: a DICOM header cannot be read.
    """
    folder = Path(folder)
    return list(_scan_folder(folder, folder.stat().st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _scan_folder(folder: Path, modified_ns: int) -> tuple[DicomSeries, ...]:
    # Discovery, checks and reading all need the headers: the cache reads each file's once per change of the folder.
    del modified_ns
    found: dict[tuple[str, str, str], list[DicomSlice]] = {}
    for path in dicom_files(folder):
        entry = _read_slice(path)
        if entry is not None and entry[0][1] not in NON_IMAGE_MODALITIES:
            found.setdefault(entry[0], []).append(entry[1])
    return tuple(
        DicomSeries(uid, modality, patient, tuple(sorted(slices, key=_along_normal)))
        for (uid, modality, patient), slices in sorted(found.items())
    )


def _along_normal(entry: DicomSlice) -> tuple[float, str]:
    if entry.position is None or entry.orientation is None:
        return 0.0, entry.path.name
    return float(np.cross(entry.orientation[:3], entry.orientation[3:]) @ entry.position), entry.path.name


def choose_series(folder: str | Path, uid: str | None = None, modalities: tuple[str, ...] = ()) -> DicomSeries:
    """The one series of a folder, or the one asked for.

    Raises:
        UserError: no image series, several without a choice, or the chosen one is not there.
    """
    series = [s for s in scan_folder(folder) if not modalities or s.modality in modalities]
    if uid is not None:
        chosen = [s for s in series if s.uid == uid]
        if not chosen:
            raise UserError(
                "the chosen DICOM series must be in its folder",
                f"{uid} in {folder}, which holds {', '.join(s.uid for s in series) or 'no image series'}",
                "Correct series_uid in the manifest",
            )
        return chosen[0]
    if not series:
        raise UserError("a DICOM folder must hold an image series", str(folder))
    if len(series) > 1:
        listed = "; ".join(f"{s.uid} ({s.modality or 'no modality'}, {len(s.slices)} files)" for s in series)
        raise UserError(
            "a DICOM folder must hold one series",
            f"{len(series)} series in {folder}: {listed}",
            "Move each series to a folder of its own, or choose one with path and series_uid in the manifest's files",
        )
    return series[0]


def series_faults(path: Path, series: DicomSeries) -> list[Fault]:
    """Faults that headers show: mixed sizes or orientations, slices twice at one place, missing slices."""
    slices = series.slices
    if len(slices) == 1:
        return []
    remedy = "Copy or export the series again, or move it out of the dataset"
    sizes = sorted({(s.columns, s.rows) for s in slices})
    if len(sizes) > 1:
        return [Fault(path, "the slices of a DICOM series must have one size", str(sizes), remedy)]
    orientations = [s.orientation for s in slices if s.orientation is not None and s.position is not None]
    if len(orientations) < len(slices):
        value = f"{len(slices) - len(orientations)} of {len(slices)} slices have none"
        return [Fault(path, "every DICOM slice must state its position and orientation", value, remedy)]
    if max(float(np.abs(o - orientations[0]).max()) for o in orientations) > 1e-3:
        rule = "the slices of a DICOM series must have one orientation"
        return [Fault(path, rule, "several orientations", "Move the localizer to a folder of its own")]
    places = np.array([_along_normal(s)[0] for s in slices])
    gaps = np.diff(places)
    if gaps.min() < 1e-3:
        value = f"{int((gaps < 1e-3).sum())} of {len(slices)} slices, first at {places[int(gaps.argmin())]:g} mm"
        split = "Split the acquisition (phases, echoes or repetitions) into one folder each"
        return [Fault(path, "no two slices of a DICOM series may lie at the same position", value, split)]
    usual = float(np.median(gaps))
    bad = np.flatnonzero(np.abs(gaps - usual) > SPACING_TOLERANCE * usual)
    if bad.size:
        missing = int(sum(max(round(float(gaps[i]) / usual) - 1, 0) for i in bad))
        value = (
            f"a gap of {gaps[bad[0]]:g} mm after {places[bad[0]]:g} mm where {usual:g} mm is usual"
            f" ({bad.size} such gaps, about {missing} missing slices)"
        )
        return [Fault(path, "a DICOM series must be evenly spaced, without a missing slice", value, remedy)]
    return []
