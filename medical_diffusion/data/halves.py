"""Data lists of halves: every volume becomes two items, left and right, after the split, so that no subject crosses it.

A volume's mask is the one that its item names, or the file of its name in a folder ``masks`` beside its ``images``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medical_diffusion.data.checks import Fault, raise_faults
from medical_diffusion.data.listing.datalist import DataList
from medical_diffusion.data.preprocessing.halves import SIDES
from medical_diffusion.data.reading.formats import kind_of, stem_of
from medical_diffusion.files import content_hash, file_hash

logger = logging.getLogger(__name__)

IMAGES, MASKS = "images", "masks"

Item = dict[str, Any]


def both_halves(lists: DataList) -> DataList:
    """The same lists with two items a volume: ``{..., "side": "left" or "right"}``, and "mask" where there is one.

    The fingerprint follows the masks as well, by their whole content: a mask drawn again may have as many bytes.

    Raises:
        UserError: a folder of masks holds one without an image.
    """
    items = [*lists.train, *lists.validation, *lists.test]
    masks = _masks_beside([Path(item["image"]) for item in items])
    found: dict[str, Path] = {}
    for item in items:
        mask = Path(item["mask"]) if item.get("mask") else masks.get(Path(item["image"]))
        if mask is not None:
            found[item["image"]] = mask
    marks = sorted(f"{Path(image).name}:{file_hash(mask)}" for image, mask in found.items())
    logger.info(
        "Left and right halves: %d of %d volumes have a breast mask%s.",
        len(found),
        len(items),
        "" if len(found) == len(items) else "; the others are cut by the outline of the body",
    )

    def doubled(part: Sequence[Item]) -> list[Item]:
        return [
            {**item, **({"mask": str(found[item["image"]])} if item["image"] in found else {}), "side": side}
            for item in part
            for side in SIDES
        ]

    return replace(
        lists,
        train=doubled(lists.train),
        validation=doubled(lists.validation),
        test=doubled(lists.test),
        fingerprint=content_hash([lists.fingerprint, marks]),
    )


def _masks_beside(images: Sequence[Path]) -> dict[Path, Path]:
    """Mask of each image that has one of its name in the folder ``masks`` beside its folder ``images``."""
    masks: dict[Path, Path] = {}
    faults: list[Fault] = []
    for folder in sorted({path.parent for path in images if path.parent.name.lower() == IMAGES}):
        beside = folder.parent / MASKS
        if not beside.is_dir():
            continue
        by_stem = {stem_of(path): path for path in images if path.parent == folder}
        for mask in sorted(beside.iterdir()):
            if mask.name.startswith(".") or kind_of(mask) is None:
                continue
            if stem_of(mask) in by_stem:
                masks[by_stem[stem_of(mask)]] = mask
            else:
                value = f"no {stem_of(mask)} in {folder}"
                faults.append(Fault(mask, "a mask must have its image", value, "Add the image, or remove the mask"))
    raise_faults(faults, "every mask must have its image", "Add the images, or remove the masks")
    return masks
