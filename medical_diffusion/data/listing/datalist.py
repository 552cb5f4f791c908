"""From a folder to MONAI data lists: images found, labelled, split by subject, in a fixed order, with a fingerprint."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_diffusion.data.checks import raise_faults
from medical_diffusion.data.listing.classes import count_labels
from medical_diffusion.data.listing.exposure import content_marks
from medical_diffusion.data.listing.rules import SplitRule
from medical_diffusion.data.listing.source import DataSource, stated_split
from medical_diffusion.data.listing.split import split_subjects
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataList:
    """Items for MONAI datasets: ``{"image": path, "subject": id}``, with "label", "mask", "series_uid", "class_label".

    Attributes:
        fingerprint: changes with the names and contents of the files and with the split; a copied folder keeps it.
        classes: names of the classes, by the number that an item's "class_label" holds; empty without labels.
        classes_fingerprint: changes with the classes and with the class of any image; empty without labels.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    fingerprint: str
    classes: tuple[str, ...] = ()
    classes_fingerprint: str = ""

    def label_counts(self) -> dict[str, int]:
        """How many training images each class has, in the order of ``classes``."""
        return count_labels(self.classes, [item["class_label"] for item in self.train if self.classes])

    def __str__(self) -> str:
        parts = []
        for name in _PARTS:
            items = getattr(self, name)
            parts.append(f"{name} {len(items)} volumes of {len({i['subject'] for i in items})} subjects")
        if self.classes:
            parts.append("training " + ", ".join(f"{count} {name}" for name, count in self.label_counts().items()))
        return "; ".join(parts)


def build_datalist(
    dataset_dir: str | Path,
    manifest: str | Path | None = None,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    salt: str | None = None,
    datalist: str | Path | None = None,
    class_folders: bool = False,
    classes: Sequence[str] | None = None,
    planar: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    subject_column: str | None = None,
    labels: bool | None = None,
) -> DataList:
    """Find the images of a folder, number their classes and split them by subject.

    Args:
        dataset_dir: folder of the images.
        manifest: path or packaged name of a manifest; the folder's own layout otherwise.
        validation_fraction, test_fraction, salt: of the split; default: the manifest's, else 0.1, 0.1 and "".
        datalist: a CSV, an MSD ``dataset.json`` or a MONAI datalist that names the images, instead of a manifest.
        class_folders: the first folder below ``dataset_dir`` that is no container is the class.
        classes: names of the classes in the order of their numbers; default: the manifest's, else those that occur,
            sorted.
        planar: flat images count, and each DICOM file is an image of its own.
        image_column, label_column, subject_column: of the datalist; default: found by their usual names.
        labels: ``True`` demands labels of two classes or more, ``False`` passes over them; by default they are taken
            where there are any, and demanded where ``classes``, ``label_column`` or ``class_folders`` ask for them.

    Raises:
        UserError: as ``find_volumes``, ``load_manifest``, ``read_table``, ``resolve_classes`` and ``split_subjects``;
            one subject in two parts.
    """
    source = DataSource.of(
        dataset_dir, manifest, datalist, class_folders, planar, image_column, label_column, subject_column
    )
    volumes, faults = source.scan()
    raise_faults(faults, "every volume of the dataset must be found", "Correct the files, the manifest or the list")
    names, numbers = source.resolve_classes(volumes, classes, labels)
    parts = _assign(volumes, source, validation_fraction, test_fraction, salt)
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in _PARTS}
    digest, classes_digest = hashlib.sha256(), hashlib.sha256("\n".join(names).encode())
    marks = content_marks([(volume.path, volume.series_uid) for volume in volumes])
    for position, (volume, mark) in enumerate(zip(volumes, marks, strict=True)):
        part = parts[volume.subject]
        item: dict[str, Any] = {"image": str(volume.path), "subject": volume.subject}
        if volume.series_uid:
            item["series_uid"] = volume.series_uid
        if volume.label:
            item["label"] = str(volume.label)
        if volume.mask:
            item["mask"] = str(volume.mask)
        if names:
            item["class_label"] = numbers[position]
            classes_digest.update(f"{numbers[position]}\n".encode())
        lists[part].append(item)
        digest.update(f"{part}\n{source.relative(volume.path)}\n{mark}\n".encode())
    data = DataList(
        **lists,
        fingerprint=digest.hexdigest(),
        classes=names,
        classes_fingerprint=classes_digest.hexdigest() if names else "",
    )
    logger.info("Volumes of %s: %s", source.root, data)
    absent = [name for name, count in data.label_counts().items() if count == 0]
    if absent:
        logger.warning("No training image is labelled %s", ", ".join(absent))
    return data


def _assign(
    volumes: list[VolumeFile],
    source: DataSource,
    validation_fraction: float | None,
    test_fraction: float | None,
    salt: str | None,
) -> dict[str, str]:
    """Part of each subject: the one that is stated, else by hash."""
    stated = stated_split(volumes)
    rule = source.manifest.split if source.manifest is not None else SplitRule()
    validation = rule.validation if validation_fraction is None else validation_fraction
    salt = rule.salt if salt is None else salt
    if not stated:
        test = rule.test if test_fraction is None else test_fraction
        return split_subjects((volume.subject for volume in volumes), validation, test, salt)
    train = [subject for subject, part in stated.items() if part == "train"]
    if train and "validation" not in stated.values() and source.manifest is None:
        logger.info("No validation images are stated: %g of the training subjects are held out for it", validation)
        return stated | split_subjects(train, validation, 0.0, salt)
    missing = [part for part in ("train", "validation") if part not in stated.values()]
    if missing:
        raise UserError(
            f"a split needs volumes for {' and '.join(missing)}",
            f"{source.name} with {', '.join(sorted(set(stated.values())))}",
            "Correct the splits that it states",
        )
    return stated
