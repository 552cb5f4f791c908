"""Are planted copies found, and how often do strangers raise a false alarm? On real images, as Markdown.

    python benchmarks/copy_alarms.py --images DIR [--train DIR] [--folds 4] [--planted 60]
        [--crop_size H W D] [--intensity auto|stored|percentile|minmax]

With --train, DIR are images that no training image shows, all of one fold. Without it, the images of DIR are cut into
folds, each once the strangers to all others. The threshold is that of the command ``evaluate``; every stranger is
counted with a threshold that was set without it. Images that are a training image byte for byte are left out. Planted
are training images, each kind told from the strangers by the area under the ROC curve.
"""

from __future__ import annotations

import argparse
import datetime
import io
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from medical_diffusion.data.image_set import ImageSet
from medical_diffusion.evaluation.agreement import area_under_roc
from medical_diffusion.evaluation.copies import CopySearch
from medical_diffusion.evaluation.copy_rate import calibrate, clopper_pearson

SEED = 0
NOISE = 0.1
"""5 % of the range [-1, 1]."""
SHIFT = 2


def shifted(image: Tensor, step: int) -> Tensor:
    """Moved by ``step`` voxels along every axis that is long enough, the border repeated."""
    for axis, size in enumerate(image.shape[1:], start=1):
        if size >= 4 * SHIFT:
            image = image.index_select(axis, (torch.arange(size) + step).clamp(0, size - 1))
    return image


def noisy(image: Tensor) -> Tensor:
    """With Gaussian noise of 5 % of the range."""
    return (image + NOISE * torch.randn(image.shape)).clamp(-1, 1)


def recompressed(image: Tensor, quality: int = 50) -> Tensor:
    """The first channel of (C, H, W, D) after JPEG, slice by slice."""
    from PIL import Image

    slices = []
    for plane in image[0].movedim(-1, 0):
        stream = io.BytesIO()
        grey = ((plane + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(grey).save(stream, "JPEG", quality=quality)
        slices.append(torch.from_numpy(np.asarray(Image.open(stream)).astype(np.float32)))
    return torch.stack(slices, -1)[None] / 127.5 - 1


PLANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda x: x,
    "flipped": lambda x: x.flip([2]),
    "shifted": lambda x: shifted(x, SHIFT),
    "noisy": noisy,
    "recompressed": recompressed,
    "darker": lambda x: 0.7 * x - 0.2,
    "flipped, shifted, noisy, recompressed": lambda x: recompressed(noisy(shifted(x.flip([1]), -SHIFT)), 75),
}


class Fold:
    """What one fold adds: false alarms, and for each kind of plant its scores beside the strangers'."""

    def __init__(self, training: Sequence[Tensor], strangers: Sequence[Tensor], planted: int) -> None:
        torch.manual_seed(SEED)
        search = CopySearch(training)
        calibration = calibrate(search, training, strangers, SEED)
        self.alarms, self.strangers = calibration.false_alarms, calibration.strangers
        self.training, self.rate = len(training), calibration.false_alarm_rate
        chosen = np.random.default_rng(SEED).permutation(len(training))[:planted]
        self.found, self.auroc = {}, {}
        for kind, plant in PLANTS.items():
            scores = search.search([plant(training[int(n)]) for n in chosen], label=kind).scores
            self.found[kind] = int((scores > calibration.threshold).sum())
            both = torch.cat([scores, calibration.scores]).numpy()
            self.auroc[kind] = area_under_roc(both, np.arange(len(both)) < len(scores))
        self.planted = len(chosen)


def folds(options: argparse.Namespace) -> list[Fold]:
    given = {"crop_size": options.crop_size, "intensity": options.intensity}
    images = ImageSet(options.images, **given)
    if options.train:
        training = ImageSet(options.train, **given)
        known = {image.numpy().tobytes() for image in training}
        return [Fold(training, [image for image in images if image.numpy().tobytes() not in known], options.planted)]
    stacked = list(images)
    order = np.random.default_rng(SEED).permutation(len(stacked))
    parts = [set(order[k :: options.folds].tolist()) for k in range(options.folds)]
    return [
        Fold([x for n, x in enumerate(stacked) if n not in part], [stacked[n] for n in sorted(part)], options.planted)
        for part in parts
    ]


def table(found: Sequence[Fold]) -> str:
    """Markdown: false alarms with their interval, then each kind of plant."""
    alarms, strangers = sum(f.alarms for f in found), sum(f.strangers for f in found)
    low, high = clopper_pearson(alarms, strangers)
    rates = ", ".join(f"{100 * rate:g} %" for rate in sorted({f.rate for f in found}))
    sizes = ", ".join(str(f.training) for f in found)
    lines = [
        f"{len(found)} fold(s), {sizes} training images; threshold set for {rates} of false alarms.",
        f"False alarms: {alarms} of {strangers} strangers, 95 % interval {100 * low:.2f} to {100 * high:.2f} %.",
        "",
        "| planted copies | found | AUROC against strangers, least of the folds |",
        "|---|---|---|",
    ]
    planted = sum(f.planted for f in found)
    for kind in PLANTS:
        least = min(f.auroc[kind] for f in found)
        lines.append(f"| {kind} | {sum(f.found[kind] for f in found)} of {planted} | {least:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", required=True)
    parser.add_argument("--train", metavar="DIR")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--planted", type=int, default=60)
    parser.add_argument("--crop_size", type=int, nargs="+")
    parser.add_argument("--intensity", default="auto")
    options = parser.parse_args()
    found = folds(options)
    print(f"{datetime.date.today()}, {platform.machine()}, torch {version('torch')}, seed {SEED}\n")
    print(table(found))


if __name__ == "__main__":
    main()
