"""Labelled data for segmentation: pairs found and checked, classes named, subjects split and the labelled share drawn.

The split is that of every bundle: subjects ranked by a hash of their id. A share of the labels is the first subjects
of the training part by a second hash, with the seed of the repeat: at one seed a smaller share lies within a larger
one, and validation and test parts are the same for all.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_diffusion.data.checks import raise_faults
from medical_diffusion.data.listing.exposure import content_mark, content_marks
from medical_diffusion.data.listing.label_maps import BACKGROUND, LabelMap, survey, value_faults
from medical_diffusion.data.listing.pairs import Pairs, find_pairs
from medical_diffusion.data.listing.source import stated_split
from medical_diffusion.data.listing.split import split_subjects
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

PARTS = ("train", "validation", "test")
WHOLE = 100.0


@dataclass(frozen=True)
class LabelledList:
    """Items ``{"image": path, "label": path, "subject": id}`` for MONAI datasets; "series_uid" where one is chosen.

    Attributes:
        train: the labelled share of the training part.
        classes: value in the label maps by name, in the order of the network's channels 1, 2, ...; channel 0 is the
            background and all values that are not named.
        data: changes with the files, the split and the classes, not with the share; a copied folder keeps it.
        fingerprint: changes with the share too.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    classes: dict[str, int]
    data: str
    fingerprint: str

    def subjects(self, part: str) -> list[str]:
        """Ids of a part's subjects, sorted."""
        return sorted({item["subject"] for item in getattr(self, part)})

    def __str__(self) -> str:
        return "; ".join(f"{part} {len(getattr(self, part))} of {len(self.subjects(part))} subjects" for part in PARTS)


def build_labelled_list(
    dataset_dir: str | Path,
    manifest: str | Path | None = None,
    datalist: str | Path | None = None,
    classes: Sequence[str] | Mapping[str, int] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    label_fraction: float = WHOLE,
    subset_seed: int = 0,
    planar: bool = False,
    memory: Path | None = None,
    training: bool = True,
) -> LabelledList:
    """Find, check and split the labelled images of a folder.

    Args:
        dataset_dir, manifest, datalist, planar: see :func:`~medical_diffusion.data.listing.pairs.find_pairs`.
        classes: where a list states the names of the values, those to segment (the others become background);
            otherwise names of the values 1, 2, ... in order. None takes all. A mapping gives the values.
        validation_fraction, test_fraction: shares of the subjects.
        label_fraction: percent of the training subjects whose labels are used, in (0, 100].
        subset_seed: which of them.
        memory: file that keeps what the label maps hold for the next run.
        training: whether there must be subjects to train on; a list may state a test part alone otherwise.

    Raises:
        UserError: any fault of the files, all listed; no foreground; a share without a subject or foreground; a list
            that states parts but none to train on.
    """
    pairs = find_pairs(dataset_dir, manifest, datalist, planar)
    files = [(volume.path, _label_of(volume)) for volume in pairs.volumes]
    maps, faults = survey(files, planar, memory, [volume.series_uid for volume in pairs.volumes])
    values = _stated_values(pairs, maps)
    chosen = _choose(pairs, values, classes)
    named = values if pairs.names or classes is None else {value: name for name, value in chosen.items()}
    faults = [*pairs.faults, *faults, *value_faults(files, maps, named)]
    raise_faults(faults, "every labelled image must be usable", "Correct these files, or move them out of the folder")
    wanted = set(chosen.values())
    held = zip(pairs.volumes, maps, strict=True)
    foreground = {_label_of(volume): labels.foreground & wanted for volume, labels in held if labels is not None}
    _check_foreground(foreground.values(), str(dataset_dir), chosen)
    parts = _assign(pairs, validation_fraction, test_fraction, training)
    candidates = [subject for subject, part in parts.items() if part == "train"]
    share = set(draw_share(candidates, label_fraction, subset_seed)) if training or candidates else set()
    lists: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    digest = hashlib.sha256(repr(sorted(chosen.items())).encode())
    images = content_marks([(volume.path, volume.series_uid) for volume in pairs.volumes])
    for volume, image in zip(pairs.volumes, images, strict=True):
        part, label = parts[volume.subject], _label_of(volume)
        marks = image, content_mark(label)
        digest.update(f"{part}\n{volume.subject}\n{volume.path.name}\n{label.name}\n{marks}\n".encode())
        if part != "train" or volume.subject in share:
            item = {"image": str(volume.path), "label": str(label), "subject": volume.subject}
            lists[part].append(item | ({"series_uid": volume.series_uid} if volume.series_uid else {}))
    whole = digest.hexdigest()
    digest.update("\n".join(sorted(share)).encode())
    if lists["train"] or training:
        _check_share(lists["train"], foreground, chosen, label_fraction)
    result = LabelledList(**lists, classes=chosen, data=whole, fingerprint=digest.hexdigest())
    logger.info("Labelled images of %s: %s", dataset_dir, result)
    return result


def draw_share(subjects: Iterable[str], percent: float, seed: int = 0) -> list[str]:
    """The first ``percent`` of the subjects, rounded up, in an order that depends on ``seed`` and their ids alone.

    Raises:
        UserError: ``percent`` outside (0, 100], or no subject.
    """
    unique = set(subjects)
    if not 0 < percent <= WHOLE or not unique:
        raise UserError(
            "label_fraction must leave a volume to train on: percent of the training subjects, in (0, 100]",
            f"{percent:g} % of {len(unique)} subjects",
            "Pass a larger one, or add labelled volumes",
        )
    ranked = sorted(unique, key=lambda s: (hashlib.sha256(f"share {seed}:{s}".encode()).hexdigest(), s))
    return ranked[: math.ceil(round(percent * len(ranked) / WHOLE, 9))]


def _label_of(volume: VolumeFile) -> Path:
    assert volume.label is not None
    return volume.label


def _stated_values(pairs: Pairs, maps: Sequence[LabelMap | None]) -> dict[int, str]:
    """Name by value, without the background: as stated, else each value that occurs."""
    if pairs.names:
        return {value: name for value, name in sorted(pairs.names.items()) if value != BACKGROUND}
    found = Counter(value for held in maps if held is not None for value in held.foreground)
    return {value: f"class_{value}" for value in sorted(found)}


def _choose(pairs: Pairs, values: dict[int, str], classes: Sequence[str] | Mapping[str, int] | None) -> dict[str, int]:
    """Value by name of the classes to segment."""
    if isinstance(classes, Mapping):
        return {str(name): int(value) for name, value in classes.items()}
    if classes is None:
        return {name: value for value, name in values.items()}
    if len(set(classes)) < len(classes):
        raise UserError("classes must have different names", list(classes))
    if not pairs.names:
        return {name: value for value, name in enumerate(classes, start=1)}
    by_name = {name: value for value, name in values.items()}
    for name in classes:
        if name not in by_name:
            raise UserError(f"--classes must be among those of {pairs.stated_by}", name, did_you_mean(name, by_name))
    left = [name for name in by_name if name not in classes]
    if left:
        logger.info("Counted as background: %s", ", ".join(left))
    return {name: by_name[name] for name in classes}


def _check_foreground(foreground: Iterable[frozenset[int]], place: str, classes: dict[str, int]) -> None:
    held = list(foreground)
    empty = sum(not values for values in held)
    if empty == len(held):
        named = ", ".join(f"{value} {name}" for name, value in classes.items()) or "none"
        raise UserError(
            "label maps must hold a foreground, values other than 0",
            f"{place}: none of {len(held)} maps holds a voxel of a class ({named})",
            "Check that these are the label maps and that --classes names what they hold",
        )
    if empty:
        logger.info("%d of %d label maps hold no foreground", empty, len(held))


def _assign(pairs: Pairs, validation_fraction: float, test_fraction: float, training: bool) -> dict[str, str]:
    """Part of each subject: as stated where a list states parts, the rest by hash."""
    stated = stated_split(pairs.volumes)
    parts = set(stated.values())
    if stated and "train" not in parts:
        if training:
            raise UserError(
                "a list that states parts must state subjects to train on",
                f"{len(stated)} subjects of {' and '.join(sorted(parts))}",
                "Name training images, or leave the split out of the list",
            )
        return stated
    if "train" in parts and "validation" in parts:
        return stated
    if "train" in parts and "test" in parts:
        train = [subject for subject, part in stated.items() if part == "train"]
        return stated | split_subjects(train, validation_fraction, 0.0, pairs.salt)
    return split_subjects((volume.subject for volume in pairs.volumes), validation_fraction, test_fraction, pairs.salt)


def _check_share(
    train: Sequence[dict[str, Any]], foreground: dict[Path, frozenset[int]], classes: dict[str, int], percent: float
) -> None:
    counts = Counter(value for item in train for value in foreground[Path(item["label"])])
    if not counts:
        raise UserError(
            "label_fraction must leave a foreground to learn from",
            f"{percent:g} %: {len(train)} volumes whose label maps hold background alone",
            "Pass a larger one, or another --subset_seed",
        )
    absent = [name for name, value in classes.items() if not counts[value]]
    if absent:
        shown = ", ".join(absent)
        logger.warning("No label map of these %d training volumes holds %s: it will not be learnt", len(train), shown)
