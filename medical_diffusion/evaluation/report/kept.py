"""Figures that are computed once: kept on disk under what they were computed from.

A figure is found again by its name, the images (hashes of their contents) and the protocol that it depends on, and by
the code: figures of another version of this package, or of the libraries that compute them, are computed anew. So a
second run of the same command computes nothing, an interrupted one goes on, and another generator in the same report
leaves the figures of the first ones where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import medical_diffusion
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import Interval
from medical_diffusion.evaluation.copies import Matches
from medical_diffusion.evaluation.copy_rate import Calibration, CopyRate
from medical_diffusion.files import content_hash, file_hash, load_tensors, save_tensors

T = TypeVar("T")

LIBRARIES = ("torch", "monai", "numpy", "scipy")
"""That compute figures."""
_NUMBER = np.float64(0)
_TYPES: list[Any] = [
    *(Interval, Matches, Calibration, CopyRate),
    *(_NUMBER.__reduce__()[0], np.dtype, type(_NUMBER.dtype)),  # numbers of NumPy
]
"""Besides tensors and plain values, what a kept figure may consist of."""


class KeptFigures:
    """Figures by name and images.

    Args:
        folder: where they are kept; None keeps nothing.
        protocol: all that they depend on besides the images, for JSON.
        keys: hashes of the images of each set, by its name.

    Attributes:
        taken, computed: how many figures came from the folder, and how many did not.
    """

    def __init__(
        self, folder: str | Path | None, protocol: Mapping[str, Any], keys: Mapping[str, Sequence[str]]
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self._protocol = content_hash(protocol)
        self._sets = {name: content_hash(list(of_set)) for name, of_set in keys.items()}
        self.taken = self.computed = 0

    def __call__(self, name: str, sets: Sequence[str], compute: Callable[[], T], more: Any = None) -> T:
        """The figure ``name`` of the sets: kept, or computed and kept.

        Args:
            name: of the figure.
            sets: names of the sets that it is computed from, in the order of their roles.
            compute: gives tensors, plain values, NumPy's float64 and the classes that :data:`_TYPES` lists.
            more: what else it depends on, for JSON.

        Raises:
            UserError: ``compute`` does (nothing is kept then), or the folder can not be written to.
        """
        if self.folder is None:
            return compute()
        origin = [name, self._protocol, [self._sets[of] for of in sets], more, code_hash()]
        path = self.folder / f"{content_hash(origin)[:32]}.pt"
        try:
            with torch.serialization.safe_globals(_TYPES):
                found = load_tensors(path)
        except UserError:  # none yet, or damaged
            result = compute()
            save_tensors(path, {"figure": name, "result": result})
            self.computed += 1
            return result
        self.taken += 1
        return found["result"]


NOTHING_KEPT = KeptFigures(None, {}, {})


@functools.cache
def code_hash() -> str:
    """Hash of this package's code and of the versions of the libraries that compute figures."""
    root = Path(medical_diffusion.__file__).parent
    code = {str(file.relative_to(root)): file_hash(file) for file in sorted(root.rglob("*.py"))}
    return content_hash([code, {library: version(library) for library in LIBRARIES}])
