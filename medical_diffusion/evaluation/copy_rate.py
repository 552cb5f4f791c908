"""How many samples are copies? The threshold of :mod:`copies` set by strangers, and tried on planted copies.

Strangers are real images that were not trained on; without any, training images stand in, each compared with the
others. Their scores are near to normal but for images of one person on both sides, which real sets hold unnoticed and
which must not raise the threshold. So it is set by the median m and the ninth decile q of the strangers' scores:

    threshold = m + (z(1 - a) + z(0.95) sqrt((1 + z(1 - a)^2) / n)) (q - m) / z(0.9)

where the second term makes up for what n strangers leave uncertain (a tolerance bound with 95 % confidence),
for a false-alarm rate ``a``: the lowest of ``FALSE_ALARM_RATES`` at which at least ``SENSITIVITY`` of planted copies
(training images flipped, shifted by 2 voxels, with 5 % noise) are still found. Where more than a tenth of the strangers
have a relative among the training images, q is no longer a stranger's: then the distance m - q' to the first decile
takes the place of q - m where it is smaller. If planted copies are missed still, there is no verdict. False alarms are
counted on the strangers, each half with the threshold of the other. The copy rate is the share of flagged samples with
the interval of Clopper and Pearson (1934); false alarms are not subtracted, so it errs on the side of the patients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta, norm
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.copies import SHIFT, CopySearch, Matches

FALSE_ALARM_RATES = (0.001, 0.01)
SENSITIVITY = 0.99
LEAST_SENSITIVITY = 0.9
"""Below this share of planted copies found, a rate of zero would say nothing."""
MAX_STRANGERS = 500
PLANTED = 60
PLANTED_NOISE = 0.1
"""5 % of the range [-1, 1]."""
FEWEST_STRANGERS = 10
HELD_OUT = "held-out real images"
LEFT_OUT = "training images, each compared with the others"


@dataclass(frozen=True)
class CopyRate:
    """The verdict on a set of samples.

    Attributes:
        matches: the nearest training image of each sample.
        flagged: which samples score above the threshold, ``(N,)`` boolean.
        rate, low, high: copy rate and its 95 % interval, each in [0, 1].
        calibration: how the threshold was set.
    """

    matches: Matches
    flagged: Tensor
    rate: float
    low: float
    high: float
    calibration: Calibration


@dataclass(frozen=True)
class Calibration:
    """Threshold, and what it does to strangers and to planted copies.

    Attributes:
        threshold: scores above it are copies.
        false_alarm_rate: of strangers, that the threshold is set for.
        false_alarms, strangers: counted on strangers, each half with the threshold of the other.
        sensitivity: share of planted copies above the threshold.
        auroc: area under the ROC curve of planted copies against strangers.
        source: where the strangers come from.
        scores: of the strangers.
    """

    threshold: float
    false_alarm_rate: float
    false_alarms: int
    strangers: int
    sensitivity: float
    auroc: float
    source: str
    scores: Tensor

    @property
    def false_alarm_interval(self) -> tuple[float, float]:
        """95 % interval of the share of false alarms."""
        return clopper_pearson(self.false_alarms, self.strangers)


def calibrate(
    search: CopySearch,
    training: Sequence[Tensor],
    held_out: Sequence[Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Set the threshold.

    Args:
        search: over ``training``.
        training: images (C, H, W, D) by index, those of ``search``.
        held_out: real images that were not trained on; None compares training images with one another.
        seed: of the images that are drawn.

    Raises:
        UserError: fewer than 10 strangers; or planted copies are missed, so that no verdict is possible.
    """
    generator = np.random.default_rng(seed)
    source = training if held_out is None else held_out
    if len(source) < FEWEST_STRANGERS:
        rule = f"the threshold for copies needs at least {FEWEST_STRANGERS} real images that are no copies"
        raise UserError(rule, len(source), "Give more held-out or training images")
    chosen = np.sort(generator.permutation(len(source))[:MAX_STRANGERS]).tolist()
    label = "Strangers" if progress else ""
    exclude = chosen if held_out is None else None
    scores = search.search(_Chosen(source, chosen), exclude, label).scores
    planted = _Planted(training, np.sort(generator.permutation(len(training))[:PLANTED]).tolist(), seed)
    found = search.search(planted, label="Planted copies" if progress else "").scores
    name = LEFT_OUT if held_out is None else HELD_OUT
    for related, rate in itertools.product((False, True), FALSE_ALARM_RATES):
        threshold = stranger_threshold(scores, rate, related)
        sensitivity = float((found > threshold).float().mean())
        if sensitivity >= SENSITIVITY:
            break
    if sensitivity < LEAST_SENSITIVITY:
        raise UserError(
            f"at least {100 * LEAST_SENSITIVITY:.0f} % of planted copies must be found before a verdict on copies",
            f"{100 * sensitivity:.0f} %, strangers being {name}",
            "Remove images of the same patients from the held-out and the training images, and duplicates among them",
        )
    halves = generator.permutation(len(scores))
    parts = [torch.from_numpy(halves[::2].copy()), torch.from_numpy(halves[1::2].copy())]
    thresholds = [stranger_threshold(scores[part], rate, related) for part in parts]
    alarms = sum(int((scores[part] > limit).sum()) for part, limit in zip(parts, thresholds[::-1], strict=True))
    above = (found[:, None] > scores).float() + 0.5 * (found[:, None] == scores).float()
    return Calibration(threshold, rate, alarms, len(scores), sensitivity, float(above.mean()), name, scores)


def copy_rate(
    samples: Sequence[Tensor], search: CopySearch, calibration: Calibration, progress: bool = True
) -> CopyRate:
    """Search the samples' training images and count copies.

    Args:
        samples: synthetic images of the training images' shape.
        search, calibration: of the training images.

    Raises:
        UserError: no samples, or another shape.
    """
    matches = search.search(samples, label="Samples" if progress else "")
    flagged = matches.scores > calibration.threshold
    low, high = clopper_pearson(int(flagged.sum()), len(flagged))
    return CopyRate(matches, flagged, float(flagged.float().mean()), low, high, calibration)


def stranger_threshold(scores: Tensor, false_alarm_rate: float, related: bool = False) -> float:
    """Score that a stranger exceeds with at most the given probability; see the module's first lines.

    Args:
        scores: of strangers, ``(n,)``.
        false_alarm_rate: in (0, 0.5).
        related: some may have relatives among the training images, so the smaller of both sides is the spread.
    """
    z = float(norm.ppf(1 - false_alarm_rate))
    z += float(norm.ppf(0.95)) * math.sqrt((1 + z * z) / len(scores))
    low, middle, high = (float(scores.double().quantile(q)) for q in (0.1, 0.5, 0.9))
    spread = min(high - middle, middle - low) if related else high - middle
    return middle + z / float(norm.ppf(0.9)) * max(spread, 1e-6)


def clopper_pearson(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934); (0, 1) for no trials."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, count - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, count - successes)) if successes < count else 1.0
    return low, high


def samples_to_prove(limit: float) -> int | None:
    """Smallest number of samples of which none is a copy whose interval ends at ``limit`` or below; None for 0.

    Without copies the upper end is ``1 - 0.025^(1/n)``.
    """
    if limit <= 0:
        return None
    count = max(1, math.floor(math.log(0.025) / math.log1p(-limit)))
    return count if clopper_pearson(0, count)[1] <= limit else count + 1


class _Chosen(Sequence[Tensor]):
    """Some images of a sequence."""

    def __init__(self, images: Sequence[Tensor], indices: Sequence[int]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.images[self.indices[index]]


class _Planted(_Chosen):
    """Training images flipped along an axis, shifted by two voxels along each, with noise."""

    def __init__(self, images: Sequence[Tensor], indices: Sequence[int], seed: int) -> None:
        super().__init__(images, indices)
        self.seed = seed

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        image = super().__getitem__(index)
        generator = np.random.default_rng([self.seed, index])
        for axis, size in enumerate(image.shape[1:], start=1):
            if size >= 4 * SHIFT:
                step = int(generator.choice([-SHIFT, SHIFT]))
                places = (torch.arange(size) + step).clamp(0, size - 1)
                image = image.index_select(axis, places)
        axis = int(generator.integers(3)) + 1
        image = image.flip([axis])
        noise = torch.from_numpy(generator.normal(0, PLANTED_NOISE, tuple(image.shape))).float()
        return (image + noise).clamp(-1, 1)
