"""Finding volumes below a folder: NIfTI, NRRD, MetaImage and DICOM series, each with its subject.

Where flat images are asked for, PNG, JPEG, TIFF and NumPy files count too, and each DICOM file is an image of its own.

Without a manifest the folder speaks for itself: hidden files are passed over, files below a folder named as labels or
masks are left out, and the subject is the patient id (DICOM), the BIDS entity ``sub-*``, the sub-folder below the
images, or the name of the file.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from medical_diffusion.data.checks import Fault, raise_faults
from medical_diffusion.data.listing.labels import label_by_manifest
from medical_diffusion.data.listing.manifest import Manifest, inside
from medical_diffusion.data.listing.masks import add_masks
from medical_diffusion.data.listing.rules import ManifestFile
from medical_diffusion.data.listing.series import choose_listed
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.reading.dicom import choose_series, scan_folder
from medical_diffusion.data.reading.formats import is_flat_format, kind_of, stem_of, supported
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

DATASET_DIR = "dataset_dir"
#: A thousand series have a quarter of a million headers to read: from this many folders on a progress bar shows it.
_FOLDERS_WITHOUT_PROGRESS = 20
_LABEL_FOLDER = re.compile(r"(labels?|masks?|seg|segmentations?)(tr|ts)?", re.IGNORECASE)
_CONTAINER_FOLDER = re.compile(r"(images?|volumes?)(tr|ts)?|train(ing)?|val(id(ation)?)?|test(ing)?", re.IGNORECASE)


def find_volumes(dataset_dir: str | Path, manifest: Manifest | None = None, planar: bool = False) -> list[VolumeFile]:
    """All volumes below a folder, in the order of their paths.

    Args:
        planar: flat image files count, and each DICOM file is an image of its own.

    Raises:
        UserError: the folder is missing, empty or without a readable image; a DICOM folder holds several series; the
            manifest names a file that is missing or lies outside.
    """
    volumes, faults = scan_volumes(dataset_dir, manifest, planar)
    raise_faults(faults, "every volume of the dataset must be found", "Correct the files or the manifest")
    return volumes


def scan_volumes(
    dataset_dir: str | Path, manifest: Manifest | None = None, planar: bool = False, option: str = DATASET_DIR
) -> tuple[list[VolumeFile], list[Fault]]:
    """As ``find_volumes``, but faults of single files are returned beside the volumes that are fine.

    Args:
        option: what errors call the folder.

    Raises:
        UserError: the folder is missing, empty or without any image; the manifest leads outside.
    """
    root = check_dataset_dir(dataset_dir, option)
    if manifest is not None and manifest.files:
        volumes, faults = _listed(root, manifest, planar)
    else:
        volumes, faults = _searched(root, manifest, planar, option)
    volumes.sort(key=lambda v: (v.path.as_posix(), v.series_uid or ""))
    if manifest is not None:
        volumes = choose_listed(manifest, volumes)
        for add in (label_by_manifest, add_masks):
            volumes, more = add(root, manifest, volumes)
            faults += more
        _compare_counts(manifest, volumes)
    return volumes, faults


def check_dataset_dir(dataset_dir: str | Path, option: str = DATASET_DIR) -> Path:
    """The folder, with ``~`` expanded.

    Args:
        option: what errors call it.

    Raises:
        UserError: it is missing, a file, or empty.
    """
    root = Path(str(dataset_dir)).expanduser()
    if not root.exists():
        raise UserError(f"{option} must be an existing folder", str(root), "Check the path")
    if not root.is_dir():
        raise UserError(f"{option} must be a folder", f"the file {root}", "Pass the folder that holds the volumes")
    if not any(root.iterdir()):
        raise UserError(f"{option} must not be empty", str(root), f"Put volumes there: {supported()}")
    return root


def _searched(root: Path, manifest: Manifest | None, planar: bool, option: str) -> tuple[list[VolumeFile], list[Fault]]:
    files = list(walk_files(root))
    kinds = {path: kind for path in files if (kind := kind_of(path, planar)) is not None}
    if not kinds:
        suffixes = Counter("".join(path.suffixes[-2:]).lower() or "no suffix" for path in files).most_common(8)
        found = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes) or "no files"
        hint = "; flat images belong to a bundle of depth 1" if any(map(is_flat_format, files)) else ""
        expected = (
            f"The first image of manifest {manifest.name} is {manifest.expected}. " if manifest is not None else ""
        )
        remedy = f"{expected}Supported: {supported(planar)}{hint}"
        raise UserError(f"{option} must hold readable images", f"{root} with {found}", remedy)
    if manifest is None:
        chosen = _without_labels(root, kinds, option)
    else:
        chosen = [path for path in kinds if manifest.matches(path.relative_to(root).as_posix())]
        if not chosen:
            example = next(iter(kinds)).relative_to(root).as_posix()
            raise UserError(
                f"{option} must hold files of manifest {manifest.name}, the first {manifest.expected}",
                f"{root} with {len(kinds)} images, the first {example}; none matching {', '.join(manifest.images)}",
                "Pass the folder above or below, or omit --manifest",
            )
    modalities = manifest.dicom_modalities if manifest is not None else ()
    volumes: list[VolumeFile] = []
    faults: list[Fault] = []
    folders = sorted({path.parent for path in chosen if kinds[path] == "dicom"})
    places = [path for path in chosen if kinds[path] != "dicom"] + folders
    silent = len(folders) < _FOLDERS_WITHOUT_PROGRESS
    for place in tqdm(places, "Reading DICOM headers", unit="series", disable=silent):
        try:
            if place.is_dir() and planar:
                volumes += _dicom_images(root, place, manifest, set(chosen), modalities)
            elif place.is_dir():
                if any(not modalities or series.modality in modalities for series in scan_folder(place)):
                    volumes.append(_dicom_volume(root, place, manifest, modalities))
            else:
                volumes.append(_file_volume(root, place, kinds[place], manifest))
        except UserError as error:
            if manifest is not None and "inside dataset_dir" in error.rule:
                raise
            faults.append(Fault.from_error(place, error))
    if not volumes and not faults:
        wanted = f" of modality {', '.join(modalities)}" if modalities else ""
        raise UserError(f"{option} must hold image series{wanted}", str(root), f"Supported: {supported(planar)}")
    return volumes, faults


def _file_volume(root: Path, path: Path, kind: str, manifest: Manifest | None) -> VolumeFile:
    relative = path.relative_to(root).as_posix()
    if manifest is None:
        return VolumeFile(path, subject_by_path(root, path), kind)
    inside(root, relative)
    return VolumeFile(path, _split_unit(manifest, relative), kind)


def _dicom_volume(root: Path, folder: Path, manifest: Manifest | None, modalities: tuple[str, ...]) -> VolumeFile:
    relative = folder.relative_to(root).as_posix()
    if manifest is not None:
        inside(root, relative)
    series = choose_series(folder, modalities=modalities)
    uid = series.uid if len(scan_folder(folder)) > 1 else None
    if manifest is None:
        return VolumeFile(folder, series.patient_id or subject_by_path(root, folder), "dicom", uid)
    return VolumeFile(folder, _split_unit(manifest, f"{relative}/"), "dicom", uid)


def _dicom_images(
    root: Path, folder: Path, manifest: Manifest | None, chosen: set[Path], modalities: tuple[str, ...]
) -> list[VolumeFile]:
    """The DICOM files of a folder, whichever their series, as one image each."""
    images = []
    for series in scan_folder(folder):
        for path in (entry.path for entry in series.slices):
            if path not in chosen or (modalities and series.modality not in modalities):
                continue
            if manifest is None:
                images.append(VolumeFile(path, series.patient_id or subject_by_path(root, path), "dicom"))
            else:
                images.append(_file_volume(root, path, "dicom", manifest))
    return images


def _split_unit(manifest: Manifest, relative: str) -> str:
    """What never crosses a split: the subject in a path, or the path itself where the data name none."""
    subject = manifest.subject_of(relative)
    return subject if manifest.split.has_subjects else relative.rstrip("/")


def _listed(root: Path, manifest: Manifest, planar: bool) -> tuple[list[VolumeFile], list[Fault]]:
    volumes: list[VolumeFile] = []
    faults: list[Fault] = []
    for entry in manifest.files:
        path = inside(root, entry.path)
        label = inside(root, entry.label) if entry.label else None
        for needed in filter(None, (path, label)):
            if not needed.exists():
                faults.append(Fault(needed, "a file that the manifest names must exist", "no such file", "Fetch it"))
        if path.exists():
            try:
                volumes.append(_listed_volume(path, label, entry, manifest, planar))
            except UserError as error:
                faults.append(Fault.from_error(path, error))
    return volumes, faults


def _listed_volume(path: Path, label: Path | None, entry: ManifestFile, manifest: Manifest, planar: bool) -> VolumeFile:
    kind = "dicom" if path.is_dir() else kind_of(path, planar)
    if kind is None:
        raise UserError("a file that the manifest names must be an image", str(path), f"Supported: {supported(planar)}")
    if path.is_dir():
        if entry.sha256:
            raise UserError("sha256 in a manifest belongs to a file", str(path), "Remove it from this DICOM folder")
        choose_series(path, entry.series_uid, () if entry.series_uid else manifest.dicom_modalities)
    subject = entry.subject or _split_unit(manifest, entry.path)
    return VolumeFile(path, subject, kind, entry.series_uid, label, entry.split, entry.sha256, entry.class_name)


def walk_files(root: Path) -> Iterator[Path]:
    """Files below a folder that are not hidden, sorted; links are followed, each real folder once."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _without_labels(root: Path, kinds: dict[Path, str], option: str) -> list[Path]:
    labels = [path for path in kinds if in_label_folder(root, path)]
    if not labels:
        return list(kinds)
    images = sorted(set(kinds) - set(labels))
    folders = sorted({p.parent.relative_to(root).as_posix() for p in labels})
    shown = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
    if not images:
        raise UserError(
            f"{option} must hold images beside its labels",
            f"{root} with images in {shown} only",
            f"For label maps themselves pass that folder as {option}",
        )
    logger.info("Taking %d images of %s; %d files in %s are labels and left out", len(images), root, len(labels), shown)
    return images


def in_label_folder(root: Path, path: Path) -> bool:
    """Whether a folder between ``root`` and a file is named as one of labels or masks."""
    return any(_LABEL_FOLDER.fullmatch(part) for part in path.relative_to(root).parts[:-1])


def subject_by_path(root: Path, path: Path) -> str:
    """Subject that a path states: BIDS entity, else the first folder that is no container, else the file's name."""
    relative = path.relative_to(root)
    bids = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)", relative.as_posix())
    if bids:
        return bids.group(1)
    folders = [part for part in relative.parts[:-1] if not is_container(part)]
    if folders:
        return folders[0]
    return stem_of(path) if path != root else root.name


def is_container(folder: str) -> bool:
    """Whether a folder's name says only that images are in it, or of which split (images, imagesTr, train, val)."""
    return _CONTAINER_FOLDER.fullmatch(folder) is not None


def _compare_counts(manifest: Manifest, volumes: list[VolumeFile]) -> None:
    """Warn where a copy is not what the manifest counts, with both figures."""
    by_class = Counter(volume.class_name for volume in volumes)
    found = {"subjects": len({volume.subject for volume in volumes}), "volumes": len(volumes)}
    compared = [(noun, manifest.counts.get(noun), count) for noun, count in found.items()]
    stated_classes = manifest.counts.get("classes", {})
    compared += [(f"images of class {name}", stated, by_class[name]) for name, stated in stated_classes.items()]
    for noun, stated, count in compared:
        if stated is not None and stated != count:
            logger.warning("Manifest %s states %d %s, found %d", manifest.name, stated, noun, count)
