"""Are synthetic images of use? A classifier learns from them and is tested on real ones (Medfusion, Table 4).

The classifier is that of :mod:`agreement`, trained alike on real and on synthetic images of the same classes. The area
under the ROC curve on held-out real images says what was learned; its interval is the bootstrap over the test images,
each class drawn by itself, so that no resample loses one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.agreement import ClassAgreement, area_under_roc
from medical_diffusion.evaluation.bootstrap import LEVEL, RESAMPLES, Interval


def utility_auroc(
    images: Tensor,
    labels: Sequence[int],
    test_images: Tensor,
    test_labels: Sequence[int],
    classes: Sequence[str],
    steps: int = 400,
    seed: int = 0,
) -> Interval:
    """AUROC on real test images of a classifier that was trained on ``images``, one against the rest on average.

    Args:
        images: real or synthetic (B, C, H, W, D) in [-1, 1].
        labels: class of each, an index into ``classes``.
        test_images: real ones that were not trained on.
        test_labels: class of each.
        classes: names, at least two.
        steps: of training.
        seed: of weights, order and resamples.

    Raises:
        UserError: a class without training or test images, fewer than two classes.
    """
    truth = np.asarray(test_labels)
    missing = [name for index, name in enumerate(classes) if not (truth == index).any()]
    if len(classes) < 2 or missing:
        received = f"none of {', '.join(missing)}" if missing else list(classes)
        raise UserError("the utility test needs real test images of at least two classes", received)
    classifier = ClassAgreement(classes, steps=steps, seed=seed).fit(images, list(labels))
    scores = classifier.probabilities(test_images).numpy()
    generator = np.random.default_rng(seed)
    places = [np.flatnonzero(truth == index) for index in range(len(classes))]
    areas = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([generator.choice(place, len(place)) for place in places])
        areas.append(_mean_area(scores[drawn], truth[drawn]))
    low, high = np.quantile(areas, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(_mean_area(scores, truth), float(low), float(high), len(truth))


def _mean_area(scores: np.ndarray, truth: np.ndarray) -> float:
    chosen = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    return float(np.mean([area_under_roc(scores[:, c], truth == c) for c in chosen]))
