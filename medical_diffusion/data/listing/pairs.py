"""Pairs of image and label map: by a list (MSD ``dataset.json``, datalist), a manifest, or folders beside each other.

Folders: ``images/`` and ``labels/`` (or ``masks/``, ``segmentations/``), ``imagesTr/`` and ``labelsTr/``, with files of
the same name whatever their formats; a channel suffix ``_0000`` of the image does not count.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medical_diffusion.data.checks import Fault
from medical_diffusion.data.listing.discovery import check_dataset_dir, scan_volumes
from medical_diffusion.data.listing.entries import locate
from medical_diffusion.data.listing.manifest import Manifest, load_manifest
from medical_diffusion.data.listing.tables import read_table
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.formats import FIRST_CHANNEL, kind_of, stem_of
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

MSD_LIST = "dataset.json"
PHANTOM_LIST = "phantoms.json"
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "segmentations", "segmentation", "seg")
_IMAGE_FOLDER = re.compile(r"(?:images?|volumes?)(tr|ts)?", re.IGNORECASE)


@dataclass(frozen=True)
class Pairs:
    """Labelled images of a folder.

    Attributes:
        volumes: images, each with the path of its label map as ``label``.
        faults: of files without their other half.
        names: class by value where a list states them, the background included.
        stated_by: the file that states the names.
        salt: of the split, where a manifest states one.
    """

    volumes: list[VolumeFile]
    faults: list[Fault]
    names: dict[int, str]
    stated_by: str = ""
    salt: str = ""


def find_pairs(
    dataset_dir: str | Path,
    manifest: str | Path | None = None,
    datalist: str | Path | None = None,
    planar: bool = False,
) -> Pairs:
    """Images with their label maps, ordered by path.

    Args:
        dataset_dir: folder of the data; where nothing else is named, a ``dataset.json`` in it is the list, or, without
            ``training`` (nnU-Net), says the names of the classes.
        manifest: path or packaged name of a manifest that says where label maps lie.
        datalist: a list that names images and label maps.
        planar: images of depth 1 are welcome.

    Raises:
        UserError: nothing to be read; both a manifest and a list; a manifest or list that names no label map at all.
    """
    root = check_dataset_dir(dataset_dir)
    names: dict[int, str] = {}
    stated_by = salt = ""
    if manifest is not None and datalist is not None:
        raise UserError("labelled images come from one of manifest and datalist", "both")
    if manifest is None and datalist is None and _names_images(root / MSD_LIST):
        datalist = root / MSD_LIST
    if manifest is not None:
        rules = load_manifest(manifest)
        volumes, faults = _by_manifest(root, rules, planar)
        salt = rules.split.salt
    elif datalist is not None:
        table = Path(str(datalist)).expanduser()
        table = root / table if not table.exists() and (root / table).is_file() else table
        volumes, faults = _by_list(root, table, planar)
        names, stated_by = _stated_names(table), table.name
    else:
        volumes, faults = _by_folders(root, planar)
        stated_by = MSD_LIST if (root / MSD_LIST).is_file() else PHANTOM_LIST
        names = _stated_names(root / stated_by)
    volumes.sort(key=lambda volume: volume.path.as_posix())
    return Pairs(volumes, faults, names, stated_by if names else "", salt)


def _names_images(file: Path) -> bool:
    """Whether a ``dataset.json`` is a list (a damaged one is told as such); that of nnU-Net only names classes."""
    if not file.is_file():
        return False
    try:
        return "training" in json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True


def _by_manifest(root: Path, rules: Manifest, planar: bool) -> tuple[list[VolumeFile], list[Fault]]:
    volumes, faults = scan_volumes(root, rules, planar)
    paired = [replace(volume, label=volume.label or volume.mask) for volume in volumes]
    if not any(volume.label for volume in paired):
        raise UserError(
            "a manifest of labelled images must say where label maps lie",
            f"manifest {rules.name} without a label map that is there",
            "State layout.masks.paths, or a label for each of its files",
        )
    known = {fault.path for fault in faults}
    faults += [_no_label(v.path, f"manifest {rules.name}") for v in paired if v.label is None and v.path not in known]
    return [volume for volume in paired if volume.label is not None], faults


def _by_list(root: Path, table: Path, planar: bool) -> tuple[list[VolumeFile], list[Fault]]:
    entries = [
        replace(entry, segmentation=entry.class_name, class_name=None)
        if entry.segmentation is None and entry.class_name and kind_of(Path(entry.class_name), planar=True)
        else entry
        for entry in read_table(table)
    ]
    unlabelled = [entry for entry in entries if entry.segmentation is None and entry.split == "test"]
    if unlabelled:
        logger.info("%s: %d test images without label maps are left out", table.name, len(unlabelled))
    volumes, faults = locate([entry for entry in entries if entry not in unlabelled], table, root, planar)
    faults += [_no_label(volume.path, table.name) for volume in volumes if volume.label is None]
    return [volume for volume in volumes if volume.label is not None], faults


def _by_folders(root: Path, planar: bool) -> tuple[list[VolumeFile], list[Fault]]:
    volumes, faults = scan_volumes(root, planar=planar)
    paired: list[VolumeFile] = []
    folders: dict[Path, dict[str, Path]] = {}
    used: set[Path] = set()
    left_out = 0
    for volume in volumes:
        folder = next((place for place in _label_folders(root, volume.path) if place.is_dir()), None)
        if folder is None and volume.path.parent.name.lower().endswith("ts"):
            left_out += 1
            continue
        if folder is not None and folder not in folders:
            folders[folder] = {stem_of(path): path for path in sorted(folder.iterdir()) if kind_of(path, planar)}
        stem = stem_of(volume.path)
        known = folders.get(folder, {}) if folder is not None else {}
        label = known.get(stem) or known.get(stem.removesuffix(FIRST_CHANNEL))
        if label is None:
            where = folder.relative_to(root).as_posix() if folder is not None else "a folder labels beside images"
            faults.append(_no_label(volume.path, where))
            continue
        used.add(label)
        paired.append(replace(volume, label=label))
    if not paired:
        raise UserError(
            "dataset_dir must hold images with label maps",
            f"{root} with {len(volumes)} images and no label map of their names",
            "Put them as images/NAME and labels/NAME, write a dataset.json, or name a manifest",
        )
    if left_out:
        logger.info("%d test images without a folder of label maps are left out", left_out)
    for folder, known in folders.items():
        spare = [path for path in known.values() if path not in used]
        place = folder.relative_to(root).as_posix()
        rule = f"a label map in {place} must have an image of its name"
        faults += [Fault(path, rule, "none", "Add the image, or remove the map") for path in spare]
    return paired, faults


def _label_folders(root: Path, image: Path) -> list[Path]:
    """Where the label map of an image may lie."""
    parts = image.parent.relative_to(root).parts if image != root else ()
    for place in reversed(range(len(parts))):
        found = _IMAGE_FOLDER.fullmatch(parts[place])
        if found:
            suffix = found.group(1) or ""
            return [root.joinpath(*parts[:place], name + suffix, *parts[place + 1 :]) for name in LABEL_FOLDERS]
    return [root.joinpath(name, *parts) for name in LABEL_FOLDERS]


def _no_label(image: Path, where: str) -> Fault:
    return Fault(image, "an image must have a label map", f"none in {where}", "Add the map, or remove the image")


def _stated_names(file: Path) -> dict[int, str]:
    """Class names by value in a list's ``labels``: ``{"1": "liver"}`` (MSD) or ``{"liver": 1}`` (nnU-Net)."""
    if file.suffix != ".json" or not file.is_file():
        return {}
    try:
        stated: Any = json.loads(file.read_text(encoding="utf-8")).get("labels")
        if not isinstance(stated, Mapping):
            return {}
        turned = all(str(key).lstrip("-").isdigit() for key in stated)
        return {int(k if turned else v): str(v if turned else k) for k, v in stated.items()}
    except (ValueError, TypeError, AttributeError) as error:
        rule = f"labels in {file.name} must name a class for each value"
        raise UserError(rule, f"{file} ({error})", 'For example {"0": "background", "1": "liver"}') from error
