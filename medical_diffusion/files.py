"""Files that are whole or absent: written under a temporary name and renamed; weights read without running code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medical_diffusion.errors import UserError

HASH_CHUNK = 1 << 20


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(temporary path)`` and rename the result to ``path``; the temporary name keeps the suffixes.

    Raises:
        UserError: the folder is not writable or the disk is full; an older file at ``path`` is left as it was.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_write_failure(error):
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
        raise UserError(
            f"{path} could not be written: {'the disk is full' if full else error}",
            str(path.parent),
            "Free some space and run the same command again" if full else "Choose a folder that you may write to",
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()
    return path


def _is_write_failure(error: RuntimeError) -> bool:
    """torch.save reports a failing stream as a RuntimeError of its zip writer."""
    return any(
        word in str(error) for word in ("file write failed", "PytorchStreamWriter", "unexpected pos", "No space")
    )


def check_writable(folder: str | Path) -> Path:
    """``folder``, made if it is missing.

    Raises:
        UserError: it can not be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            "the output folder must be writable",
            f"{folder} ({error.strerror})",
            "Pass another one, or change its rights",
        ) from error
    return folder


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` in UTF-8."""
    return write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, content: object) -> Path:
    """Write ``content`` as indented JSON."""
    return write_text(path, json.dumps(content, indent=2) + "\n")


def save_tensors(path: str | Path, content: dict[str, Any]) -> Path:
    """Write tensors, numbers and text for :func:`load_tensors`."""
    return write_atomically(path, lambda part: torch.save(content, part))


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only tensors and plain values, never pickled code.

    Raises:
        UserError: the file is missing, truncated, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("a checkpoint must exist", str(path), "Train first, or download the bundle with its weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "a checkpoint must hold tensors and plain values only; this one holds pickled code or is damaged",
            str(path),
            "Do not load it; obtain the weights from a source that you trust, or train again",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            "a checkpoint must be a complete file; this one is truncated or damaged",
            str(path),
            "Delete it and run the same command again, or download it again",
        ) from error
    if not isinstance(content, dict):
        raise UserError("a checkpoint must hold a dictionary", f"{path} ({type(content).__name__})")
    return content


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(content: object) -> str:
    """SHA-256 of a JSON-like value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
