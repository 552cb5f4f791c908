"""Whether the stored ranges of a set's files map its images alike to [-1, 1].

Integers of 8 and 16 bits and floating point within [0, 1] have the range of their type. Signed integers and other
floating point have none: each image would be stretched by its own minimum and maximum. And a type may promise far more
than is used: 12-bit values in 16-bit files come out nearly black.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

OF_TYPES = {(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0)}
USED_SHARE = 1 / 8
"""Of the stored range; below it a set is said to be dark."""


def check_one_map(folder: Path, stored: Sequence[Sequence[Any]]) -> None:
    """Refuse ranges that are each image's own, and warn where little of the range is used.

    Args:
        folder: of the images, for the message.
        stored: (lowest, highest of the range, largest value) of each image; the range is None where there is none.

    Raises:
        UserError: the images do not share one map.
    """
    ranges = [(float(low), float(high)) for low, high, _ in stored if low is not None]
    own = sorted(set(ranges) - OF_TYPES)
    if len(set(ranges)) > 1 and own:
        raise UserError(
            "intensity stored needs files of one range of values",
            f"{folder}: {own[0][0]:g} to {own[0][1]:g} and {len(set(ranges)) - 1} others",
            "Pass --intensity window with --window LOW HIGH, or --intensity percentile",
        )
    if ranges and all(largest - low < USED_SHARE * (high - low) for low, high, largest in stored if low is not None):
        largest, high = max(limits[2] for limits in stored), ranges[0][1]
        logger.warning(
            "%s: the largest value is %g of %g that its files could hold, so images come out dark; "
            "for 12-bit values pass --intensity window --window 0 4095",
            folder,
            largest,
            high,
        )
