"""Phantoms as files with a listing that says what they are and proves that they are whole.

Volumes become NIfTI images and masks, images become 8-bit PNG, grey or RGB, and classes become lines of
``labels.csv``. Several processes draw them and this one writes them in order, with the bytes that one process would
write.

A folder's name carries the arguments, its files are complete or absent: everything is written into a temporary folder
beside it, which is renamed when the listing is in place.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from tqdm import tqdm

from medical_diffusion.data.phantoms.primitives import Phantom
from medical_diffusion.data.phantoms.registry import PHANTOM_KINDS, PhantomKind, check_phantom_size, phantom_kind
from medical_diffusion.data.phantoms.workers import ordered_map, worker_count
from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

LISTING = "phantoms.json"
PHANTOM_LABELS = "labels.csv"


def write_phantoms(
    kind: str,
    output_dir: str | os.PathLike[str],
    count: int,
    image_size: int | Sequence[int],
    seed: int = 0,
    progress: bool = True,
    max_workers: int | None = None,
) -> Path:
    """Write ``count`` phantoms with seeds ``seed``, ``seed + 1``, ... unless they are already there, whole.

    Args:
        kind: a name in ``PHANTOM_KINDS``.
        output_dir: folder that gets the sub-folder ``<kind>_<H>x<W>x<D>_n<count>_s<seed>``.
        count: number of phantoms, at least 1.
        image_size: voxels (H, W, D), two axes of them at least 8.
        seed: first seed, at least 0.
        progress: show a progress bar.
        max_workers: processes that draw; as many as there are CPUs, up to 8, where that pays.

    Returns:
        The sub-folder, with ``images/<kind>_<seed>.nii.gz`` (int16) and ``masks/`` of the same names (uint8), or
        ``images/<kind>_<seed>.png`` alone for planar kinds, and ``phantoms.json``: arguments, label names, and for each
        subject its files, SHA-256 and facts. Kinds with classes add ``labels.csv``: image, label, subject.

    Raises:
        UserError: an argument out of range, or a folder that cannot be written (permission, full disk).
    """
    known, size = phantom_kind(kind), per_axis(image_size, "image_size")
    check_phantom_size(kind, size)
    workers = worker_count(count) if max_workers is None else max_workers
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("max_workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} of phantoms must be a whole number of at least {least}", value)
    folder = Path(output_dir).expanduser() / f"{kind}_{'x'.join(map(str, size))}_n{count}_s{seed}"
    arguments: dict[str, Any] = {
        "kind": kind,
        "version": known.version,
        "count": count,
        "image_size": list(size),
        "seed": seed,
    }
    if is_whole(folder, arguments):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            built = Path(temporary) / "built"
            _write_folder(built, known, arguments, progress, workers)
            _put_in_place(built, folder, Path(temporary) / "replaced", arguments)
    except OSError as error:
        raise UserError(
            "phantoms need a writable folder with enough free space",
            f"{folder} ({error.strerror or error})",
            "Give another output folder, or free some space; nothing that was there before has been lost",
        ) from error
    return folder


def is_whole(folder: Path, arguments: dict[str, object]) -> bool:
    """Whether a folder holds exactly what its listing says, made with these arguments (hashes compared)."""
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        if {key: listing[key] for key in arguments} != arguments or len(listing["subjects"]) != arguments["count"]:
            return False
        kind = PHANTOM_KINDS[str(arguments["kind"])]
        if kind.classes and (folder / PHANTOM_LABELS).read_text(encoding="utf-8") != _labels_csv(listing["subjects"]):
            return False
        return all(
            _sha256((folder / subject[role]["file"]).read_bytes()) == subject[role]["sha256"]
            for subject in listing["subjects"]
            for role in _roles(kind)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class _Made:
    """What one seed becomes: its entry in the listing, and the bytes of its files by their path in the folder."""

    entry: dict[str, Any]
    files: dict[str, bytes]


def _make(seed: int, arguments: Mapping[str, Any]) -> _Made:
    kind, subject = PHANTOM_KINDS[arguments["kind"]], f"{arguments['kind']}_{seed:05d}"
    phantom = kind.generate(seed, arguments["image_size"])
    contents = (png_bytes(phantom),) if kind.planar else nifti_bytes(phantom)
    made = _Made({"subject": subject, "seed": seed}, {})
    for role, content in zip(_roles(kind), contents, strict=True):
        file = f"{role}s/{subject}.{'png' if kind.planar else 'nii.gz'}"
        made.files[file] = content
        made.entry[role] = {"file": file, "sha256": _sha256(content)}
    made.entry["facts"] = phantom.facts
    return made


def _roles(kind: PhantomKind) -> tuple[str, ...]:
    return ("image",) if kind.planar else ("image", "mask")


def _write_folder(folder: Path, kind: PhantomKind, arguments: Mapping[str, Any], progress: bool, workers: int) -> None:
    first, count, name = arguments["seed"], arguments["count"], arguments["kind"]
    for role in _roles(kind):
        (folder / f"{role}s").mkdir(parents=True)
    subjects = []
    results = ordered_map(partial(_make, arguments=arguments), range(first, first + count), workers)
    unit = "image" if kind.planar else "volume"
    for made in tqdm(results, desc=f"{name} phantoms", total=count, unit=unit, disable=not progress):
        for file, content in made.files.items():
            (folder / file).write_bytes(content)
        subjects.append(made.entry)
    listing = {**arguments, "labels": dict(kind.labels), "intensity_unit": kind.intensity_unit}
    if kind.classes:
        listing["classes"] = list(kind.classes)
        (folder / PHANTOM_LABELS).write_text(_labels_csv(subjects), encoding="utf-8")
    content = json.dumps({**listing, "subjects": subjects}, indent=1) + "\n"
    (folder / LISTING).write_text(content, encoding="utf-8")


def _labels_csv(subjects: Sequence[Mapping[str, Any]]) -> str:
    """The class of each image, as a table for other programs."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "label", "subject"))
    table.writerows((s["image"]["file"], s["facts"]["class_name"], s["subject"]) for s in subjects)
    return text.getvalue()


def png_bytes(phantom: Phantom) -> bytes:
    """A planar phantom's image, (H, W, 1) or (H, W, 1, 3), as the bytes of an 8-bit .png file, grey or RGB."""
    buffer = io.BytesIO()
    Image.fromarray(phantom.image[:, :, 0].astype(np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


def nifti_bytes(phantom: Phantom) -> tuple[bytes, bytes]:
    """A phantom's image (int16) and mask (uint8) as the bytes of .nii.gz files, equal for equal phantoms."""
    contents = []
    for voxels in (np.rint(phantom.image).astype(np.int16), phantom.mask):
        nifti = nibabel.Nifti1Image(voxels, phantom.affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_qform(phantom.affine, code=1)
        nifti.set_sform(phantom.affine, code=1)
        contents.append(gzip.compress(nifti.to_bytes(), compresslevel=1, mtime=0))
    return contents[0], contents[1]


def _put_in_place(built: Path, folder: Path, replaced: Path, arguments: dict[str, object]) -> None:
    """Rename the new folder to its name; a broken one of that name is moved aside first and deleted after."""
    if folder.exists():
        if is_whole(folder, arguments):  # another process was faster
            return
        os.replace(folder, replaced)
    try:
        os.replace(built, folder)
    except OSError:
        if not is_whole(folder, arguments):
            raise
    shutil.rmtree(replaced, ignore_errors=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
