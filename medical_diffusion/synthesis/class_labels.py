"""Which class a seed draws: the one that was asked for, or one by the frequencies of the training set.

The class of a seed is a function of the seed alone, as its noise is, so that a sample never depends on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medical_diffusion.errors import UserError, did_you_mean

#: keeps the draw of the class apart from other uses of the same seed
STREAM = 1


class ClassLabels:
    """Class of each seed.

    Args:
        names: classes in the order of the network's labels; empty for a network without classes.
        frequencies: share of each class in training; equal shares where none are given.
        asked: name of the class that every sample shall have; None draws by frequency.

    Raises:
        UserError: a class was asked for that is not in the list, or of a network without classes.
    """

    def __init__(
        self, names: Sequence[str] = (), frequencies: Sequence[float] | None = None, asked: str | None = None
    ) -> None:
        self.names = tuple(names)
        if asked is not None and not self.names:
            raise UserError(
                "a class can be asked for only where the network was trained with labels",
                asked,
                "Leave out --label, or train with labels (--datalist or --class_folders)",
            )
        if asked is not None and asked not in self.names:
            hint = did_you_mean(asked, self.names)
            raise UserError(f"--label must be one of {', '.join(self.names)}", asked, hint)
        self.asked = None if asked is None else self.names.index(asked)
        weights = np.ones(len(self.names)) if not frequencies else np.asarray(frequencies, dtype=float)
        self._bounds = np.cumsum(weights) / weights.sum() if self.names else weights

    def of(self, seed: int) -> int | None:
        """Index of the class that ``seed`` draws; None for a network without classes."""
        if not self.names:
            return None
        if self.asked is not None:
            return self.asked
        draw = np.random.default_rng([STREAM, seed]).uniform()
        return min(int(np.searchsorted(self._bounds, draw, side="right")), len(self.names) - 1)

    def name_of(self, seed: int) -> str | None:
        """Name of that class."""
        label = self.of(seed)
        return None if label is None else self.names[label]
