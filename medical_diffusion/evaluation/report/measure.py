"""All figures of a report: real images, one or several generators, and the images that these were trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import Interval
from medical_diffusion.evaluation.copies import CopySearch
from medical_diffusion.evaluation.copy_rate import Calibration, CopyRate
from medical_diffusion.evaluation.diversity import diversity_gap, ms_ssim_diversity
from medical_diffusion.evaluation.features import FeatureExtractor, extract_features
from medical_diffusion.evaluation.report.comparisons import compare
from medical_diffusion.evaluation.report.figures import (
    Figure,
    absent,
    distance_figures,
    energies,
    floor_figures,
    of_interval,
    sharpness_figure,
)
from medical_diffusion.evaluation.report.kept import KeptFigures
from medical_diffusion.evaluation.report.memorisation import NO_TRAINING_IMAGES, CopyFigures
from medical_diffusion.evaluation.report.nearness import Nearness
from medical_diffusion.evaluation.report.settings import settings
from medical_diffusion.evaluation.report.utility import NOT_MEASURED, Labels, utility_figures
from medical_diffusion.files import content_hash


class ReportImages(Protocol):
    """Images (C, H, W, D) in [-1, 1] by index, such as :class:`medical_diffusion.data.image_set.ImageSet`.

    ``keys`` are hashes of contents, equal for equal images.
    """

    @property
    def keys(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass
class Measurement:
    """What was measured: ``report`` is the content of ``report.json``, the rest is for pictures.

    Attributes:
        features: of the real images under "real", of each generator under its name; (N, F).
        copies: of each generator, where training images were given.
        calibration: of the threshold for copies.
    """

    report: dict[str, Any]
    features: dict[str, np.ndarray]
    copies: dict[str, CopyRate] = field(default_factory=dict)
    calibration: Calibration | None = None


HELD_BYTES = 1 << 28
"""Of images of one set that stay in memory: pairs, spectra and searches want them again."""


class _Part(Sequence[Tensor]):
    """Some images of a set; the first ones that were read are held."""

    def __init__(self, images: ReportImages, indices: Sequence[int]) -> None:
        self.images, self.indices = images, list(indices)
        self._held: dict[int, Tensor] = {}
        self._bytes = 0

    @property
    def keys(self) -> list[str]:
        return [self.images.keys[n] for n in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._held:
            image = self.images[self.indices[index]]
            if self._bytes + image.nbytes > HELD_BYTES:
                return image
            self._held[index] = image
            self._bytes += image.nbytes
        return self._held[index]


def _whole(images: ReportImages) -> _Part:
    return _Part(images, range(len(images)))


def measure(
    real: ReportImages,
    generators: Mapping[str, ReportImages],
    extractor: FeatureExtractor,
    train: ReportImages | None = None,
    protocol: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = lambda _: None,
    labels: Labels | None = None,
) -> Measurement:
    """Compute every figure; one that needs more images than there are is left out and says why.

    Args:
        real: held-out images, or a reference batch.
        generators: synthetic images by name.
        extractor: of features.
        train: what the generators were trained on; without it nothing is said of copies.
        protocol: how files became tensors, for the report.
        cache_dir: of features and figures; what was computed from the same images in the same way is taken from there.
        seed: of all that is drawn.
        device: of the extractor.
        say: told what is done next.
        labels: classes of the images, for the utility test; without them it is left out.

    Raises:
        UserError: no generator; synthetic images that are the real ones; labels that the utility test can not use.
    """
    if not generators:
        raise UserError("a report needs at least one generator", "none")
    if labels is not None:
        labels.check()
    warnings = _same_images(real, generators, train)
    held = {name: _whole(images) for name, images in generators.items()}
    full_protocol = {
        "images": dict(protocol or {}),
        "extractor": extractor.protocol,
        "settings": settings(labels.steps if labels is not None else None),
        "seed": seed,
        "medical_diffusion": version("medical_diffusion"),
    }
    keys = {"real": real.keys, **{name: images.keys for name, images in generators.items()}}
    if train is not None:
        keys["train"] = train.keys
    features_dir, figures_dir = (None if cache_dir is None else Path(cache_dir) / of for of in ("features", "figures"))
    of_features = KeptFigures(figures_dir, full_protocol, keys)
    of_images = KeptFigures(figures_dir, {k: v for k, v in full_protocol.items() if k != "extractor"}, keys)
    common: dict[str, Any] = {"seed": seed, "extractor": extractor.name}
    report: dict[str, Any] = {
        "protocol": full_protocol,
        "protocol_hash": content_hash(full_protocol),
        "real": {"images": len(real), "relation": relation(real, train)},
        "warnings": warnings,
        "generators": {},
        "comparisons": [],
        "utility": {"reason": NOT_MEASURED},
    }
    say("features")
    features = {"real": extract_features(real, extractor, features_dir, device=device, description="Features, real")}
    for name, images in held.items():
        description = f"Features, {name}"
        features[name] = extract_features(images, extractor, features_dir, device=device, description=description)
    say("real against real")
    report["floor"] = of_features("floor", ["real"], partial(floor_figures, features["real"], **common))
    diversity = _diversity("real", _whole(real), of_images, seed)
    report["ms_ssim_real"] = diversity[1]
    real_energies = of_images("energies", ["real"], partial(energies, real))
    known = set(train.keys) if train is not None else set()
    training = _whole(train) if train is not None else None
    unseen = _Part(real, [n for n, key in enumerate(real.keys) if key not in known])
    search = cache(partial(CopySearch, training or []))
    copies = CopyFigures(training, unseen, search, of_images, seed)
    if training is not None:
        say("search for copies of training images")
        report["memorisation"] = copies.summary()
    nearness = Nearness(training, unseen, search, extractor, features_dir, device, seed, of_features)
    measurement = Measurement(report, features, copies.rates, copies.calibration)
    for name, images in held.items():
        say(f"figures of {name}")
        distances = partial(distance_figures, features["real"], features[name], **common)
        figures = of_features("distances", ["real", name], distances)
        synthetic, figures["ms_ssim_synthetic"] = _diversity(name, images, of_images, seed)
        figures["ms_ssim_real"] = report["ms_ssim_real"]
        if synthetic is not None and diversity[0] is not None:
            figures["ms_ssim_gap"] = of_interval(diversity_gap(synthetic, diversity[0]), seed=seed)
        own_energies = of_images("energies", [name], partial(energies, images))
        figures["high_frequency_ratio"] = sharpness_figure(own_energies, real_energies, seed)
        entry: dict[str, Any] = {"images": len(images), "figures": figures}
        figures["copy_rate"], verdict = copies.of(name, images)
        entry |= verdict
        matches = copies.rates[name].matches if name in copies.rates else None
        figures["feature_copy_ratio"], entry["nearest_in_features"] = nearness.of(name, images, matches)
        report["generators"][name] = entry
    if labels is not None:
        trained = {} if train is None else {"train": train}
        _utility(measurement, {"real": real, **trained, **held}, labels, of_images, seed, say)
    say("comparisons")
    report["comparisons"] = compare(features, list(generators), seed, of_features)
    taken, computed = (sum(getattr(k, name) for k in (of_features, of_images)) for name in ("taken", "computed"))
    if taken:
        say(f"{taken} of {taken + computed} parts of the report were taken from {figures_dir}")
    return measurement


def relation(real: ReportImages, train: ReportImages | None) -> str:
    """What the real images are to the training images, by their hashes."""
    if train is None:
        return "not known: no training images were given"
    shared = len(set(real.keys) & set(train.keys))
    if shared == 0:
        return "held out: none of the real images is a training image"
    if shared == len(set(real.keys)):
        return "training data: every real image is a training image (a reference batch, as in Medfusion's tables)"
    return f"mixed: {shared} of {len(set(real.keys))} real images are training images"


def _same_images(real: ReportImages, generators: Mapping[str, ReportImages], train: ReportImages | None) -> list[str]:
    """Warnings of sets that share images, by hash."""
    found = []
    known = set(real.keys)
    for name, images in generators.items():
        shared = len(known & set(images.keys))
        if shared == len(set(images.keys)):
            raise UserError(
                "synthetic images must not be the real ones",
                f"every image of {name} is, byte by byte, one of the real images",
                "Give the folder of the samples",
            )
        if shared:
            found.append(f"{shared} images of {name} are, byte by byte, real images.")
        if train is not None and set(train.keys) & set(images.keys):
            found.append(
                f"{len(set(train.keys) & set(images.keys))} images of {name} are training images, byte by byte."
            )
    for first, second in itertools.combinations(generators, 2):
        if set(generators[first].keys) == set(generators[second].keys):
            found.append(f"{first} and {second} are the same images.")
    if train is not None and 0 < len(known & set(train.keys)) < len(known):
        found.append(f"The test overlaps the training images: {relation(real, train)}.")
    return found


def _utility(
    measurement: Measurement,
    images: Mapping[str, Any],
    labels: Labels,
    kept: KeptFigures,
    seed: int,
    say: Callable[[str], None],
) -> None:
    report = measurement.report
    figures, report["utility"] = utility_figures(images, labels, seed, say, kept)
    learned_from_real = figures.pop("train", absent(NO_TRAINING_IMAGES))
    report["utility"]["auroc_real"] = learned_from_real
    for name, area in figures.items():
        report["generators"][name]["figures"] |= {"auroc_synthetic": area, "auroc_real": learned_from_real}


def _diversity(name: str, images: Sequence[Tensor], kept: KeptFigures, seed: int) -> tuple[Interval | None, Figure]:
    try:
        interval = kept("diversity", [name], partial(ms_ssim_diversity, images, seed=seed))
    except UserError as error:
        return None, absent(error, seed=seed)
    return interval, of_interval(interval, seed=seed)
