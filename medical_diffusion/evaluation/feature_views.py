"""Views of images for a search of copies by features: moved, turned, and of one size, brightness and contrast.

A view is the window that :class:`~medical_diffusion.evaluation.copies.CopySearch` compares, moved and then mirrored. At
full size the noise of a copy moves the features of the extractor ``random`` further than strangers lie apart, so each
voxel of a view is the mean of about ``AVERAGED`` voxels or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from medical_diffusion.data.preprocessing.resize import resize_volume
from medical_diffusion.evaluation.copies import CopySearch
from medical_diffusion.files import content_hash

MEAN = 0.0
DEVIATION = 0.4
"""Of every view's values, before they are cut off at -1 and 1."""
AVERAGED = 8
VERSION = 1
"""Of how views are made: with another one, features that are kept do not count."""
SHORTEST_AXIS = 4
"""Voxels that an axis keeps."""
_SMALLEST = 1e-6


class KeyedImages(Protocol):
    """Images (C, H, W, D) in [-1, 1] by index; ``keys`` are hashes of their contents."""

    @property
    def keys(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class View(NamedTuple):
    """Image number ``image``, moved by ``shift`` and mirrored along ``flips``, both of a search for copies."""

    image: int
    flips: tuple[int, ...] = ()
    shift: tuple[int, int, int] = (0, 0, 0)


class Views(Sequence[Tensor]):
    """Views of a set of images, each made when it is asked for; views of one image should follow one another.

    Args:
        images: the set, of which one image is held.
        views: of it.
        search: says what is a window.
        full_size: enlarge views to the size of the images, for extractors that take no other.
    """

    def __init__(self, images: KeyedImages, views: Sequence[View], search: CopySearch, full_size: bool = False) -> None:
        self._images, self._views, self._search = images, views, search
        self._reduced = view_size(search)
        self._size = search.shape[1:] if full_size else self._reduced
        self._last: tuple[int, Tensor] | None = None

    @property
    def keys(self) -> list[str]:
        """Hash of what each view depends on."""
        found = self._images.keys
        how = [VERSION, self._search.size, self._search.window, self._reduced, self._size, MEAN, DEVIATION]
        return [content_hash([found[view.image], view.flips, view.shift, how]) for view in self._views]

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        view = self._views[index]
        if self._last is None or self._last[0] != view.image:
            self._last = view.image, self._images[view.image]
        x = resize_volume(self._search.windows(self._last[1], [view.shift])[0], self._reduced)
        x = x.flip([axis + 1 for axis in view.flips])
        x = (x - x.mean()) / x.std(correction=0).clamp_min(_SMALLEST)
        return resize_volume((MEAN + DEVIATION * x).clamp(-1, 1), self._size)


def view_size(search: CopySearch) -> tuple[int, int, int]:
    """Voxels (H, W, D) of the views: those of a window, fewer where these are means of fewer than ``AVERAGED``."""
    reduction = AVERAGED ** (1 / max(1, sum(n > 1 for n in search.window)))
    h, w, d = (
        min(window, max(SHORTEST_AXIS, round(window * full / (size * reduction))))
        for full, size, window in zip(search.shape[1:], search.size, search.window, strict=True)
    )
    return (h, w, d)
