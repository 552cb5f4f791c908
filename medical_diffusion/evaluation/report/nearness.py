"""Memorisation in feature space, in a report: one figure a generator, and its samples nearest to training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.copies import CopySearch, Matches
from medical_diffusion.evaluation.feature_copies import FeatureMatches, FeatureSearch, feature_copies
from medical_diffusion.evaluation.feature_views import KeyedImages, Views
from medical_diffusion.evaluation.features import FeatureExtractor, extract_features
from medical_diffusion.evaluation.features.exported import ExportedNetwork
from medical_diffusion.evaluation.report.figures import Figure, absent, of_interval
from medical_diffusion.evaluation.report.kept import NOTHING_KEPT, KeptFigures
from medical_diffusion.evaluation.report.memorisation import NO_TRAINING_IMAGES

LISTED = 10


class Nearness:
    """How near the samples of generators are to training images; nothing is computed before it is asked for.

    Args:
        training: what the generators were trained on; None where that is not known.
        held_out: real images that are no training images.
        voxels: gives the search in voxels over the training images.
        extractor: of features; an exported network, which may take one size only, gets views of the images' size.
        cache_dir: of features.
        device: of the extractor.
        seed: of what is drawn.
        kept: figures of earlier runs, of the sets "real", "train" and the generators.
    """

    def __init__(
        self,
        training: KeyedImages | None,
        held_out: KeyedImages,
        voxels: Callable[[], CopySearch],
        extractor: FeatureExtractor,
        cache_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        kept: KeptFigures = NOTHING_KEPT,
    ) -> None:
        self._training, self._held_out, self._voxels = training, held_out, voxels
        self._seed, self._kept = seed, kept
        self._extractor, self._cache_dir, self._device = extractor, cache_dir, device

    def of(
        self, name: str, samples: KeyedImages, matches: Matches | None = None
    ) -> tuple[Figure, list[dict[str, Any]]]:
        """The figure ``feature_copy_ratio``, and the samples nearest to a training image, the nearest first.

        Args:
            name: of the generator.
            samples: of it.
            matches: of these in the search in voxels, where they are known already.
        """
        if self._training is None:
            return absent(NO_TRAINING_IMAGES), []
        try:
            return self._kept("nearness", [name, "real", "train"], partial(self._compared, samples, matches))
        except UserError as error:
            return absent(error, seed=self._seed), []

    def _compared(self, samples: KeyedImages, matches: Matches | None) -> tuple[Figure, list[dict[str, Any]]]:
        found = self._search.search(samples, matches)
        strangers, source = self._strangers
        copies = feature_copies(found.distances, strangers.distances, self._seed)
        common = {"p": copies.p_value, "nearer_than_strangers": copies.nearer, "strangers": source}
        figure = of_interval(
            copies.ratio, seed=self._seed, extractor=self._extractor.name, n_strangers=copies.strangers, **common
        )
        return figure, _nearest(found)

    @cached_property
    def _search(self) -> FeatureSearch:
        assert self._training is not None
        full_size = isinstance(self._extractor, ExportedNetwork)
        return FeatureSearch(self._training, self._voxels(), self._extract, full_size)

    @cached_property
    def _strangers(self) -> tuple[FeatureMatches, str]:
        return self._search.strangers(self._held_out, self._seed)

    def _extract(self, views: Views, label: str) -> Any:
        return extract_features(views, self._extractor, self._cache_dir, device=self._device, description=label)


def _nearest(found: FeatureMatches) -> list[dict[str, Any]]:
    """For JSON; ``flips`` and ``shift`` as in :class:`~medical_diffusion.evaluation.copies.Matches`."""
    order = found.distances.argsort(kind="stable")[:LISTED].tolist()
    return [
        {
            "sample": n,
            "training_image": int(found.indices[n]),
            "distance": float(found.distances[n]),
            "flips": list(found.views[n].flips),
            "shift": list(found.views[n].shift),
        }
        for n in order
    ]


def nearness_note(name: str, entry: Mapping[str, Any]) -> str:
    """The figure as a sentence."""
    return (
        f"Features of {name}: samples are {entry['value']:.3g} times as far from the nearest training image as "
        f"{entry['n_strangers']} {entry['strangers']} (p = {entry['p']:.3g}); {entry['nearer_than_strangers']} of "
        f"{entry['n']} are nearer than all of these."
    )
