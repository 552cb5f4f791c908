"""Whom a training has seen, as hashes that go with its weights: so an evaluation can tell whether its subjects are new.

A subject is known again by its id, and by any of its images (size, first and last bytes), since another list may give
it another id. Both are hashed: weights travel further than the names of patients should.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from medical_diffusion.data.reading.dicom import choose_series

_SAMPLED_BYTES = 4096
_HASH_LENGTH = 16


def content_mark(path: Path, series_uid: str | None = None) -> str:
    """Size with the first and last bytes (a gzip file ends with its checksum); names and sizes for a DICOM folder."""
    if path.is_dir():
        files = choose_series(path, series_uid).files if series_uid else None
        names = sorted(Path(f).name for f in files) if files else sorted(os.listdir(path))
        return ",".join(f"{name}:{os.path.getsize(path / name)}" for name in names)
    size = path.stat().st_size
    with path.open("rb") as file:
        sample = file.read(_SAMPLED_BYTES)
        file.seek(max(0, size - _SAMPLED_BYTES))
        sample += file.read()
    return f"{size}:{hashlib.sha256(sample).hexdigest()}"


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
