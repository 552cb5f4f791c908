"""Whom a training has seen, as hashes that go with its weights: so an evaluation can tell whether its subjects are new.

A subject is known again by its id, and by any of its images (all bytes of its files), since another list may give it
another id. Both are hashed: weights travel further than the names of patients should.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medical_diffusion.data.reading.dicom import choose_series
from medical_diffusion.files import file_hash

_HASH_LENGTH = 16
DETACHED = (".mhd", ".nhdr")
"""Headers whose voxels lie in files that they name."""
_SHOWN_AFTER = 3.0
"""Seconds of hashing before a progress bar appears."""


def content_mark(path: Path, series_uid: str | None = None) -> str:
    """Hash of the contents of an image's files, whatever they are called; all files of a DICOM folder, or one series.

    A file is read once per process as long as its size and time stay.
    """
    if path.is_dir():
        series = choose_series(path, series_uid).files if series_uid else None
        files = [Path(f) for f in series or path.iterdir()]
        files = [f for f in files if f.is_file() and not f.name.startswith(".")]
    else:
        files = [path, *(named_files(path) if path.suffix.lower() in DETACHED else ())]
    digests = sorted(_file_mark(file) for file in files)
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def content_marks(images: Sequence[tuple[Path, str | None]]) -> list[str]:
    """:func:`content_mark` of each (path, series UID), with a progress bar where it takes long."""
    bar = tqdm(images, desc="hashing images", unit="image", delay=_SHOWN_AFTER)
    return [content_mark(path, series_uid) for path, series_uid in bar]


def _file_mark(path: Path) -> str:
    status = path.stat()
    return _whole_hash(path.absolute(), status.st_size, status.st_mtime_ns)


@cache
def _whole_hash(path: Path, size: int, modified: int) -> str:
    return file_hash(path)


def named_files(header: Path) -> list[Path]:
    """Files of voxels that the lines of a text header end with."""
    lines = header.read_text(encoding="latin-1").splitlines()
    named = (line.replace("=", ":").rpartition(":")[2].strip() for line in lines)
    return [header.parent / name for name in dict.fromkeys(named) if name and (header.parent / name).is_file()]


def training_marks(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Hashes of the subjects and images of list items, sorted, for the settings beside weights."""
    return sorted({mark for item in items for mark in _marks(item)})


def subject_mark(subject: str) -> str:
    """Hash of a subject's id."""
    return _hash(f"subject {subject}")


def seen_subjects(items: Iterable[Mapping[str, Any]], marks: Collection[str]) -> list[str]:
    """Ids, sorted, of the subjects among list items whose id or image is among the marks of a training."""
    known = set(marks)
    return sorted({item["subject"] for item in items if known.intersection(_marks(item))}) if known else []


def _marks(item: Mapping[str, Any]) -> tuple[str, str]:
    mark = content_mark(Path(item["image"]), item.get("series_uid"))
    return subject_mark(item["subject"]), _hash(f"image {mark}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]
