"""Subjects that a pre-training leaves out, so that a fine-tuning can be judged by them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from medical_diffusion.data import DataList, split_subjects
from medical_diffusion.data.listing.tables import shown
from medical_diffusion.errors import UserError
from medical_diffusion.files import content_hash

logger = logging.getLogger(__name__)


def leave_out(lists: DataList, file: str | Path, validation_fraction: float) -> DataList:
    """The lists without the subjects that ``file`` names, one id a line.

    Args:
        lists: of the pre-training.
        file: text; empty lines do not count.
        validation_fraction: of the training subjects, where no validation subject is left.

    Raises:
        UserError: the file can not be read, or names none of the subjects.
    """
    try:
        ids = {line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--held_out must be a text file with one subject id a line", f"{file} ({error})") from error
    known = {item["subject"] for item in (*lists.train, *lists.validation, *lists.test)}
    unknown = sorted(ids - known)
    if not ids & known:
        raise UserError(
            "--held_out must name subjects of this data set",
            f"{file}: none of {len(ids)} ids ({shown(unknown)}) is among {shown(sorted(known))}",
            "Correct the ids, or leave the option out where the data sets share no subject",
        )
    if unknown:
        logger.warning("--held_out: %d of %d ids name no subject here: %s.", len(unknown), len(ids), shown(unknown))
    train, validation, test = (
        [item for item in part if item["subject"] not in ids] for part in (lists.train, lists.validation, lists.test)
    )
    if not validation:
        parts = split_subjects((item["subject"] for item in train), validation_fraction, 0.0)
        validation = [item for item in train if parts[item["subject"]] == "validation"]
        train = [item for item in train if parts[item["subject"]] == "train"]
    fingerprint = content_hash([lists.fingerprint, sorted(ids & known)])
    logger.info("Left out by --held_out: %d subjects.", len(ids & known))
    return replace(lists, train=train, validation=validation, test=test, fingerprint=fingerprint)
