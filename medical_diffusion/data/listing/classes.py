"""Classes: the list of names, the number of each image's class, and what a conditional model needs of them.

Order is that of the given list; otherwise names are sorted, numbers among them as numbers. With a given list, labels
that are all numbers 0 .. K-1 count along that list, as in tables that number their classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from medical_diffusion.data.listing.tables import shown
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)


def resolve_classes(
    volumes: Sequence[VolumeFile], classes: Sequence[str] | None = None, labels: bool | None = None
) -> tuple[tuple[str, ...], list[int]]:
    """The class names, and the index of each volume's class; both empty where there are no labels or none are wanted.

    Args:
        volumes: with ``class_name`` where their labels are known.
        classes: names in the order of their numbers; ``None`` takes those that occur.
        labels: ``True`` demands them, ``False`` passes over them, ``None`` takes them where there are any.

    Raises:
        UserError: a label missing or outside the list, a name twice in it; fewer than two classes though labels are
            demanded.
    """
    if labels is False or (labels is None and classes is None and all(v.class_name is None for v in volumes)):
        return (), []
    missing = [volume.place or volume.path.name for volume in volumes if volume.class_name is None]
    if missing:
        raise UserError(
            "every image must have a label",
            f"{len(missing)} of {len(volumes)} without: {shown(missing)}",
            "Fill in their labels or leave the images out; a run without classes needs no labels",
        )
    names = [str(volume.class_name) for volume in volumes]
    if classes is None:
        order = tuple(sorted(set(names), key=_sorting_key))
    else:
        order = tuple(str(name) for name in classes)
        if len(set(order)) < len(order):
            raise UserError("classes must be different names", list(order))
        names = _along(order, names)
        _refuse_unknown(volumes, names, order)
    if labels and len(set(names)) < 2:
        raise UserError(
            "a conditional model needs images of at least two classes",
            f"{names[0]} alone" if names else "no images",
            "Add images of another class, or train without labels",
        )
    absent = sorted(set(order) - set(names))
    if absent:
        logger.warning("No image is labelled %s", ", ".join(absent))
    index = {name: number for number, name in enumerate(order)}
    return order, [index[name] for name in names]


def count_labels(classes: Sequence[str], labels: Sequence[int]) -> dict[str, int]:
    """How often each class occurs, in the order of the classes."""
    counted = Counter(labels)
    return {name: counted[number] for number, name in enumerate(classes)}


def _sorting_key(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _along(order: Sequence[str], names: list[str]) -> list[str]:
    """Names of labels that number the given classes ("1" or "1.0"); other labels as they are."""
    numbers = {float(number): name for number, name in enumerate(order)}
    try:
        values = [float(name) for name in names]
    except ValueError:
        return names
    is_numbering = set(values) <= set(numbers) and not set(names) & set(order)
    return [numbers[value] for value in values] if is_numbering else names


def _refuse_unknown(volumes: Sequence[VolumeFile], names: Sequence[str], order: Sequence[str]) -> None:
    unknown: dict[str, list[str]] = {}
    for volume, name in zip(volumes, names, strict=True):
        if name not in order:
            unknown.setdefault(name, []).append(volume.place or volume.path.name)
    if unknown:
        listed = "; ".join(f"{name!r} ({shown(places[:3])})" for name, places in sorted(unknown.items())[:10])
        raise UserError(
            f"labels must be of the classes {', '.join(order)}",
            listed + (f" and {len(unknown) - 10} more labels" if len(unknown) > 10 else ""),
            did_you_mean(min(unknown), order),
        )
