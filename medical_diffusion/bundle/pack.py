"""Packs a bundle into the zip that ``monai.bundle download`` fetches: ``<name>.zip`` with one top folder, ``<name>``.

Taken along: configurations, documents, licence, Python scripts, the preview and final weights. Left out: caches, logs,
data, samples, resume states. The same content gives the same bytes, whenever and wherever it is packed.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

from medical_diffusion.bundle.inspection import CONFIG_SUFFIXES, inspect_weights
from medical_diffusion.errors import UserError
from medical_diffusion.files import write_atomically

# what a packed bundle may hold, beside weights
PREVIEW = "preview.png"
CONTENT = ("LICENSE*", PREVIEW, "configs/**/*", "docs/**/*", "scripts/**/*.py")
HIDDEN = re.compile(r"(^|/)(\.|__pycache__/)")
REQUIRED_CONFIGS = ("train", "inference")
REQUIRED_METADATA = ("version", "monai_version", "pytorch_version", "numpy_version")
RESUME_SUFFIXES = ("_last", "_best")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can state; every member carries it."""


def pack_bundle(
    root: str | Path, output_dir: str | Path, with_weights: bool = True, run_dir: str | Path | None = None
) -> Path:
    """Write ``<output_dir>/<name>.zip``, where the name is that of the bundle's folder.

    Args:
        root: the bundle's folder.
        output_dir: created where missing; an older zip of the name is replaced once the new one is whole.
        with_weights: whether trained weights must be there and are packed.
        run_dir: where training wrote weights and preview, if not into the bundle's folder.

    Returns:
        Path of the zip.

    Raises:
        UserError: the layout is not that of a bundle, weights are missing or hold pickled code, or the output cannot
            be written.
    """
    root = Path(root).resolve()
    trained = root if run_dir is None else Path(run_dir).expanduser().resolve()
    weights = final_weights(trained) if with_weights else []
    faults = layout_faults(root)
    if with_weights:
        faults += _weight_faults(root, weights)
    if faults:
        raise UserError(
            "a bundle to pack must be complete: " + "; ".join(faults),
            str(root),
            "Train it first, name the run with --run_dir, or pack it with --without-weights"
            if with_weights
            else "Add what is missing",
        )
    for path in weights:
        if unsafe := inspect_weights(path):
            raise UserError(
                f"weights to pack must hold tensors and plain values only; {path.name} would fetch {', '.join(unsafe)}",
                str(path),
                "Save it again as a dictionary of tensors",
            )
    members = {path.relative_to(root).as_posix(): path for path in bundle_content(root)}
    members |= {path.relative_to(trained).as_posix(): path for path in weights}
    if (trained / PREVIEW).is_file():
        members[PREVIEW] = trained / PREVIEW
    return write_atomically(Path(output_dir) / f"{root.name}.zip", lambda part: _write_zip(part, root.name, members))


def layout_faults(root: Path) -> list[str]:
    """What keeps ``root`` from being a bundle that MONAI can download and run; empty where nothing does."""
    if not root.is_dir():
        return ["it is not a folder"]
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9_-]+", root.name):
        faults.append(
            "its folder's name, which MONAI takes as the bundle's, may hold letters, digits, '_' and '-' only"
        )
    for name in REQUIRED_CONFIGS:
        if not any((root / "configs" / f"{name}{suffix}").is_file() for suffix in CONFIG_SUFFIXES):
            faults.append(f"configs/{name}.json is missing")
    if not (root / "LICENSE").is_file():
        faults.append("LICENSE is missing")
    return faults + _metadata_faults(root / "configs" / "metadata.json")


def bundle_content(root: Path) -> list[Path]:
    """Files of the bundle to pack beside its weights, sorted."""
    found = {path for pattern in CONTENT for path in root.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not HIDDEN.search(path.relative_to(root).as_posix()))


def final_weights(root: Path) -> list[Path]:
    """``models/*.pt`` that a finished stage wrote: no resume states, no best-so-far, nothing moved aside."""
    found = (root / "models").glob("*.pt")
    return sorted(p for p in found if not p.stem.endswith(RESUME_SUFFIXES) and not p.name.startswith("."))


def _metadata_faults(path: Path) -> list[str]:
    if not path.is_file():
        return ["configs/metadata.json is missing"]
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"configs/metadata.json is not JSON ({error})"]
    if not isinstance(metadata, dict):
        return ["configs/metadata.json must be an object"]
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    return [f"configs/metadata.json lacks {', '.join(missing)}"] if missing else []


def _weight_faults(root: Path, weights: list[Path]) -> list[str]:
    required = ["model.pt"]
    if any((root / "configs" / f"train_autoencoder{suffix}").is_file() for suffix in CONFIG_SUFFIXES):
        required.append("autoencoder.pt")
    present = {path.name for path in weights}
    return [f"models/{name} is missing" for name in required if name not in present]


def _write_zip(target: Path, name: str, members: dict[str, Path]) -> None:
    """``members``: files by their path inside the bundle."""
    with zipfile.ZipFile(target, "w") as archive:
        for inside, path in sorted(members.items()):
            info = zipfile.ZipInfo(f"{name}/{inside}", EPOCH)
            info.external_attr = 0o100644 << 16
            info.create_system = 3  # Unix, on every system, so that the bytes agree
            info.file_size = path.stat().st_size
            # weights and pictures do not shrink
            info.compress_type = zipfile.ZIP_STORED if path.suffix in (".pt", ".png") else zipfile.ZIP_DEFLATED
            with path.open("rb") as source, archive.open(info, "w") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
