"""Patient-level split: subjects ranked by the hash of their id and cut, so that no subject is in two parts.

The rank of a subject depends on its id and the salt alone: adding subjects moves only those next to a cut.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

#: Below this many subjects there is no test part: each of its few volumes is worth more in training.
MIN_SUBJECTS_FOR_TEST = 10


def split_subjects(
    subjects: Iterable[str],
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    salt: str = "",
) -> dict[str, str]:
    """Part of each subject: "train", "validation" or "test".

    Validation has at least one subject, and so has the test part from ten subjects on unless its fraction is 0.

    Args:
        subjects: ids, repeats allowed.
        validation_fraction: share of the subjects, in (0, 1).
        test_fraction: share of the subjects, in [0, 1).
        salt: another salt gives another split.

    Raises:
        UserError: fractions out of range, or fewer subjects than parts.
    """
    if not 0 < validation_fraction < 1 or not 0 <= test_fraction < 1 or validation_fraction + test_fraction >= 1:
        raise UserError(
            "validation_fraction must be in (0, 1), test_fraction in [0, 1), and training must keep a share",
            (validation_fraction, test_fraction),
            "The defaults are 0.1 and 0.1",
        )
    unique = set(subjects)
    ranked = sorted(unique, key=lambda s: (hashlib.sha256(f"{salt}:{s}".encode()).hexdigest(), s))
    n = len(ranked)
    if n < 2:
        raise UserError(
            "a split needs at least 2 subjects, one to train on and one held out",
            f"{n} ({', '.join(ranked) or 'none'})",
            "Add volumes; where one subject id stands for several patients, state ids in a manifest (layout.subject)",
        )
    test = 0
    if test_fraction and n >= MIN_SUBJECTS_FOR_TEST:
        test = max(1, round(test_fraction * n))
    elif test_fraction:
        logger.info("Only %d subjects: no test part, %d is the least for one", n, MIN_SUBJECTS_FOR_TEST)
    validation = max(1, round(validation_fraction * n))
    if test + validation >= n:
        raise UserError(
            "a split must leave a subject to train on",
            f"{n} subjects, {validation} for validation and {test} for test",
            "Lower validation_fraction and test_fraction",
        )
    # Validation comes first so that its best-ranked subjects stay held out whether or not there is a test part.
    names = ["validation"] * validation + ["test"] * test + ["train"] * (n - validation - test)
    return dict(zip(ranked, names, strict=True))
