"""Which metric sees which fault: real images with growing faults, judged against other real images, as Markdown.

    python benchmarks/metric_faults.py --data DIR [--sets radiographs fundus hippocampus] [--limit 500]
        [--features random] [--device cpu]

A set is split at random into halves: one is the real set, the other the "generator", first without a fault. Then its
images are blurred, made noisy, repeated (mode collapse) or replaced by images of another set, each in growing steps.
A metric sees a fault where every step makes it worse than the step before. DIR holds the sets of small real images that
the tests use. Each table shows the values of the steps in a row, marked with ✓ where they worsen all the way; bold
cells are those that a metric is meant to see.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.evaluation.distances import (
    SmallSampleWarning,
    fid,
    kid,
    precision_recall_density_coverage,
)
from medical_diffusion.evaluation.diversity import ms_ssim_diversity
from medical_diffusion.evaluation.features import FeatureExtractor, create_extractor, extract_features

SEED = 0
STEPS: dict[str, tuple[float, ...]] = {
    "blur": (0.5, 1.0, 2.0),  # standard deviation in voxels
    "noise": (0.1, 0.2, 0.4),  # standard deviation, of a range of 2
    "collapse": (2, 8, 32),  # copies of each image
    "mixture": (0.1, 0.25, 0.5),  # share of the other set
}
WORSE = {"fid": 1, "kid": 1, "precision": -1, "recall": -1, "density": -1, "coverage": -1, "ms_ssim_gap": 0}
"""Whether a metric grows or falls with a fault, or moves away from 0 on either side."""
MEANT: dict[str, set[str]] = {
    "blur": {"fid", "kid", "precision", "recall", "density", "coverage"},
    "noise": {"fid", "kid", "precision", "recall", "density", "coverage"},
    # samples stay real ones: precision and density are blind by design, KID sees a mean and not how it comes about,
    # and MS-SSIM changes less than with the choice of images until few are left
    "collapse": {"fid", "recall", "coverage"},
    # a part of the samples still covers the real set
    "mixture": {"fid", "kid", "precision", "density"},
}


@dataclass(frozen=True)
class Halves:
    """Two disjoint halves of a set and images of another one, each (N, C, H, W, D) in [-1, 1]."""

    real: Tensor
    generated: Tensor
    other: Tensor


def split(images: Tensor, other: Tensor, limit: int) -> Halves:
    """Random halves of at most ``limit`` images each."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    size = min(limit, len(images) // 2)
    return Halves(images[order[:size]], images[order[size : 2 * size]], other)


def faulty(halves: Halves, fault: str, step: float) -> Tensor:
    """The generated half with a fault of this strength."""
    x = halves.generated
    if fault == "blur":
        sigmas = [0, 0, *(0 if n == 1 else step for n in x.shape[2:])]
        return torch.from_numpy(gaussian_filter(x.numpy(), sigmas))
    if fault == "noise":
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
        return (x + step * noise).clamp(-1, 1)
    if fault == "collapse":
        return x[torch.arange(len(x)) % max(1, round(len(x) / step))]
    count = round(len(x) * step)
    if count > len(halves.other):
        raise ValueError(f"a mixture of {count} images needs as many of the other set, not {len(halves.other)}")
    return torch.cat([x[count:], halves.other[:count]])


class Judge:
    """All metrics of one set of images against the real half."""

    def __init__(self, halves: Halves, extractor: FeatureExtractor, device: str = "cpu", pairs: int = 1000) -> None:
        self.extractor, self.device, self.pairs = extractor, device, pairs
        self.real = self._features(halves.real)
        self.real_similarity = ms_ssim_diversity(halves.real, pairs, SEED).value

    def _features(self, images: Tensor) -> np.ndarray:
        return extract_features(images, self.extractor, device=self.device)

    def __call__(self, images: Tensor) -> dict[str, float]:
        features = self._features(images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSampleWarning)  # the same number of images at every step
            found = {"fid": fid(self.real, features), "kid": kid(self.real, features, seed=SEED)[0]}
        found |= precision_recall_density_coverage(self.real, features)
        found["ms_ssim_gap"] = ms_ssim_diversity(images, self.pairs, SEED).value - self.real_similarity
        return found


def judge_faults(
    halves: Halves, extractor: FeatureExtractor, device: str = "cpu", pairs: int = 1000
) -> dict[str, dict[str, list[float]]]:
    """Values by fault and metric, without a fault first."""
    judge = Judge(halves, extractor, device, pairs)
    clean = judge(halves.generated)
    found: dict[str, dict[str, list[float]]] = {}
    for fault, steps in STEPS.items():
        values = [clean, *(judge(faulty(halves, fault, step)) for step in steps)]
        found[fault] = {metric: [value[metric] for value in values] for metric in WORSE}
    return found


def worsens(metric: str, values: Sequence[float]) -> bool:
    """Whether each value is worse than the one before; a score that has reached 0 can not fall further."""
    direction = WORSE[metric] or (1 if values[-1] > values[0] else -1)
    steps = np.diff(values) * direction
    exhausted = (np.array(values[:-1]) == 0) & (WORSE[metric] < 0)
    ends_further = WORSE[metric] != 0 or abs(values[-1]) > abs(values[0])
    return bool(((steps > 0) | exhausted).all()) and ends_further


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| fault | " + " | ".join(WORSE) + " |", "|---|" + "---|" * len(WORSE)]
    for fault, metrics in found.items():
        cells = []
        for metric, values in metrics.items():
            text = " → ".join(f"{value:.3g}" for value in values) + (" ✓" if worsens(metric, values) else "")
            cells.append(f"**{text}**" if metric in MEANT[fault] else text)
        steps = ", ".join(f"{step:g}" for step in STEPS[fault])
        lines.append(f"| {fault} (none, {steps}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def images_of(folder: Path, **options: object) -> Tensor:
    return torch.stack(list(ImageSet(folder, **options)))  # type: ignore[arg-type]


def radiographs(data: Path, limit: int) -> Halves:
    """Chest radiographs of 28², mixed with fundus photographs in grey."""
    with np.load(data / "cxr_pneumoniamnist28" / "pneumoniamnist_dev.npz") as arrays:
        stack = np.concatenate([arrays["train_images"], arrays["val_images"]])
    images = torch.from_numpy(stack).float()[:, None, :, :, None] / 127.5 - 1
    other = images_of(data / "fundus" / "images", image_size=(28, 28), channels=1, limit=min(limit, 250))
    return split(images, other, min(limit, 2 * len(other)))


def fundus(data: Path, limit: int) -> Halves:
    """Colour photographs of the fundus at 64², mixed with blood cells."""
    images = images_of(data / "fundus" / "images", image_size=(64, 64), channels=3)
    return split(images, images_of(data / "bloodcells" / "images", image_size=(64, 64), channels=3), limit)


def hippocampus(data: Path, limit: int, size: tuple[int, int, int] = (32, 48, 32)) -> Halves:
    """Crops of brain MRI around the hippocampus, mixed with whole heads and thighs at that size."""
    images = images_of(data / "hippocampus" / "images", image_size=size, limit=2 * limit)
    other = [
        images_of(data / name / "images", image_size=size, limit=-(-limit // 4))
        for name in ("mr_brain_t1", "sts_mr_t1")
    ]
    return split(images, torch.cat(other), limit)


SETS: dict[str, Callable[[Path, int], Halves]] = {
    "radiographs": radiographs,
    "fundus": fundus,
    "hippocampus": hippocampus,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--limit", type=int, default=500, help="images in each half at most")
    parser.add_argument("--features", default="random", help="as for the evaluation")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"{datetime.date.today()}, {platform.machine()}, torch {version('torch')}, features {args.features}\n")
    for name in args.sets:
        halves = SETS[name](args.data, args.limit)
        shape = halves.real.shape
        spatial_dims = 2 if shape[-1] == 1 else 3
        found = judge_faults(halves, create_extractor(args.features, spatial_dims, shape[1]), args.device)
        size = " x ".join(map(str, shape[2:]))
        print(f"**{name}**: {SETS[name].__doc__} {shape[0]} images in each half, {size} voxels.\n\n{table(found)}\n")


if __name__ == "__main__":
    main()
