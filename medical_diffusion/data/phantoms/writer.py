"""Phantoms as files: NIfTI images and masks with a listing that says what they are and proves that they are whole.

A folder's name carries the arguments, its files are complete or absent: everything is written into a temporary folder
beside it, which is renamed when the listing is in place.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from tqdm import tqdm

from medical_diffusion.data.phantoms.primitives import Phantom
from medical_diffusion.data.phantoms.registry import PhantomKind, phantom_kind
from medical_diffusion.errors import UserError
from medical_diffusion.shapes import per_axis

LISTING = "phantoms.json"


def write_phantoms(
    kind: str,
    output_dir: str | os.PathLike[str],
    count: int,
    image_size: int | Sequence[int],
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write ``count`` phantoms with seeds ``seed``, ``seed + 1``, ... unless they are already there, whole.

    Args:
        kind: a name in ``PHANTOM_KINDS``.
        output_dir: folder that gets the sub-folder ``<kind>_<H>x<W>x<D>_n<count>_s<seed>``.
        count: number of phantoms, at least 1.
        image_size: voxels (H, W, D).
        seed: first seed, at least 0.
        progress: show a progress bar.

    Returns:
        The sub-folder, with ``images/<kind>_<seed>.nii.gz`` (int16), ``masks/`` of the same names (uint8), and
        ``phantoms.json``: arguments, label names, and for each subject its files, SHA-256 and facts.

    Raises:
        UserError: an argument out of range, or a folder that cannot be written (permission, full disk).
    """
    known, size = phantom_kind(kind), per_axis(image_size, "image_size")
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} of phantoms must be a whole number of at least {least}", value)
    folder = Path(output_dir).expanduser() / f"{kind}_{'x'.join(map(str, size))}_n{count}_s{seed}"
    arguments = {"kind": kind, "version": known.version, "count": count, "image_size": list(size), "seed": seed}
    if is_whole(folder, arguments):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            built = Path(temporary) / "built"
            _write_folder(built, known, arguments, progress)
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
        return all(
            _sha256((folder / subject[role]["file"]).read_bytes()) == subject[role]["sha256"]
            for subject in listing["subjects"]
            for role in ("image", "mask")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_folder(folder: Path, kind: PhantomKind, arguments: dict[str, object], progress: bool) -> None:
    first, count, name = int(arguments["seed"]), int(arguments["count"]), arguments["kind"]  # type: ignore[call-overload]
    for sub_folder in ("images", "masks"):
        (folder / sub_folder).mkdir(parents=True)
    subjects = []
    for seed in tqdm(range(first, first + count), desc=f"{name} phantoms", unit="volume", disable=not progress):
        phantom = kind.generate(seed, arguments["image_size"])  # type: ignore[arg-type]
        subject = f"{name}_{seed:05d}"
        image, mask = nifti_bytes(phantom)
        entry: dict[str, object] = {"subject": subject, "seed": seed}
        for role, content in (("image", image), ("mask", mask)):
            file = f"{role}s/{subject}.nii.gz"
            (folder / file).write_bytes(content)
            entry[role] = {"file": file, "sha256": _sha256(content)}
        subjects.append({**entry, "facts": phantom.facts})
    listing = {**arguments, "labels": dict(kind.labels), "intensity_unit": kind.intensity_unit, "subjects": subjects}
    (folder / LISTING).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")


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
