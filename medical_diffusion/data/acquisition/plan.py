"""What a download would fetch, where to, and whether there is room: decided before the first byte.

Series come to ``OUTPUT/PATIENT/MODALITY_UID``, a layout that the manifests find. A series counts as finished where its
folder holds the files that the list states; folders get their name when they are whole, so that anything else is the
rest of an interruption.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medical_diffusion.data.listing.manifest import Manifest
from medical_diffusion.data.listing.series import Series, SeriesList, load_series
from medical_diffusion.errors import UserError

#: Share of the bytes asked for beyond them: folders and half-filled blocks.
DISK_MARGIN = 0.02
GIGABYTE, MEGABYTE = 1_000_000_000, 1_000_000
PART = ".part"


@dataclass(frozen=True)
class DownloadPlan:
    """Series of a manifest and the folder they go to; ``finished`` holds the UIDs of those that are there."""

    manifest: Manifest
    output_dir: Path
    listed: SeriesList
    finished: frozenset[str]

    @property
    def remaining(self) -> tuple[Series, ...]:
        """Series that are still to be fetched."""
        return tuple(series for series in self.listed.series if series.uid not in self.finished)

    @property
    def remaining_size(self) -> int:
        """Bytes that are still to be fetched, at most."""
        return sum(series.size for series in self.remaining)

    def folder_of(self, series: Series) -> Path:
        """Where the files of a series go."""
        return self.output_dir / layout_of(series)

    @property
    def part_dir(self) -> Path:
        """Where series gather, in the same layout, until they are complete; hidden: no search takes them for data."""
        return self.output_dir / PART

    def part_of(self, series: Series) -> Path:
        """Where one series gathers."""
        return self.part_dir / layout_of(series)

    @property
    def free(self) -> int:
        """Free bytes of the disk that the output folder is, or will be, on."""
        folder = self.output_dir.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def check_disk(self) -> None:
        """Refuse to begin what cannot end.

        Raises:
            UserError: less free space than the remaining series need.
        """
        arrived = sum(measure(self.part_of(series))[1] for series in self.remaining)
        needed = int((self.remaining_size - arrived) * (1 + DISK_MARGIN))
        if needed > self.free:
            raise UserError(
                "the disk must hold the download",
                f"{_as_text(needed)} needed, {_as_text(self.free)} free at {self.output_dir}",
                "Free some space, give a folder on another disk, or take a part: --patients 20",
            )

    def __str__(self) -> str:
        fields, listed = self.manifest.fields, self.listed
        files = sum(series.files for series in listed.series)
        patients = f"{len(listed.patients)} patient{'s' if len(listed.patients) > 1 else ''}"
        lines = [
            fields["title"],
            f"  licence    {fields['licence']}",
            f"  cite       {fields['source'].get('citation', fields['source']['url'])}",
            f"  contents   {len(listed.series)} series of {patients}, {files} files (IDC {listed.idc_version})",
            f"  size       {_as_text(listed.size)}",
            f"  to         {self.output_dir} ({_as_text(self.free)} free)",
        ]
        if self.finished:
            rest = f"{len(self.remaining)} series, {_as_text(self.remaining_size)}, to fetch"
            lines.append(f"  there      {len(self.finished)} series; {rest}")
        return "\n".join(lines)

    def table(self) -> str:
        """A line for each series that is still to be fetched: folder, files, megabytes."""
        return "\n".join(
            f"{self.folder_of(series)}  {series.files} files  {_as_text(series.size)}" for series in self.remaining
        )


def plan_download(manifest: Manifest, output_dir: str | Path, patients: int | None = None) -> DownloadPlan:
    """The plan for a manifest's series.

    Args:
        output_dir: folder that gets a folder a patient; it need not exist.
        patients: only the first so many patients.

    Raises:
        UserError: the data cannot be downloaded without an account (the steps to them are shown); no patients.
    """
    listed = load_series(manifest)
    if listed is None:
        steps = " ".join(f"({number}) {step}" for number, step in enumerate(manifest.fields.get("access", ()), start=1))
        raise UserError(
            f"{manifest.name} is not in the Imaging Data Commons and can not be downloaded by a command",
            None,
            f"How to obtain it: {steps}",
        )
    if patients is not None:
        if patients < 1:
            raise UserError("patients must be 1 or more", patients)
        listed = listed.of_patients(patients)
    plan = DownloadPlan(manifest, Path(output_dir).expanduser(), listed, frozenset())
    finished = frozenset(series.uid for series in listed.series if is_whole(plan.folder_of(series), series))
    return DownloadPlan(manifest, plan.output_dir, listed, finished)


def layout_of(series: Series) -> Path:
    """Folder of a series within a data set."""
    return Path(series.patient, f"{series.modality}_{series.uid}")


def measure(folder: Path) -> tuple[int, int]:
    """Number of DICOM files in a folder and their bytes; zeros where there is none.

    The bar measures while folders are moved: a file that is gone by then counts as none.
    """
    sizes = []
    for path in folder.glob("*.dcm"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def is_whole(folder: Path, series: Series) -> bool:
    """Whether a folder holds the files of a series, by number and bytes."""
    return measure(folder) == (series.files, series.size)


def _as_text(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE else f"{size / MEGABYTE:.1f} MB"
