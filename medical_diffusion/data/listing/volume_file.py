"""One found volume or image with what a list, a manifest or its folders say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VolumeFile:
    """One volume: a file, or the folder of a DICOM series.

    Attributes:
        path: where it lies.
        subject: id of the patient; volumes of one subject never cross a split.
        kind: "nifti", "nrrd", "metaimage" or "dicom"; "png", "jpeg", "tiff" or "numpy" for flat images.
        series_uid: which series of a DICOM folder, where the manifest chose one.
        label: its label volume (a segmentation), where the manifest names one and the file is there.
        mask: its mask, where the manifest states where masks lie and one is there.
        split: "train", "validation" or "test" where the manifest, a list or a folder fixes it.
        sha256: expected checksum where the manifest states it.
        class_name: its class where a manifest, a list or a folder says so.
        place: the row of the list that names it, for messages.
    """

    path: Path
    subject: str
    kind: str
    series_uid: str | None = None
    label: Path | None = None
    split: str | None = None
    sha256: str | None = None
    class_name: str | None = None
    place: str | None = None
    mask: Path | None = None
