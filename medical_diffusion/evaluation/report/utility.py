"""Utility in a report: classifiers of real and of synthetic images, tested on real ones (Medfusion, Table 4).

All classifiers learn from the same number of images, the smallest there is or as many as memory holds, so that a
generator is not judged by how many samples were drawn; each class keeps its share. Tested are real images that are no
training images, by hash, where these are given. Images longer than ``WORKING_SIZE`` along an axis are reduced to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medical_diffusion.data.preprocessing.resize import resize_volume
from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.evaluation.bootstrap import Interval
from medical_diffusion.evaluation.report.figures import Figure, absent, of_interval
from medical_diffusion.evaluation.report.kept import NOTHING_KEPT, KeptFigures
from medical_diffusion.evaluation.utility import utility_auroc

WORKING_SIZE = {2: 64, 3: 32}
"""Longest axis that classifiers see, by the number of axes longer than 1."""
MOST_IMAGES = 20_000
"""That a classifier learns from, or is tested on: more than 400 steps of 32 images can see."""
MOST_BYTES = 512 << 20
"""Of one set's reduced images in memory, so that training and test images together take 1 GiB."""
VALUE_BYTES = 4
"""Of a float32."""
STEPS = 400
NOT_MEASURED = "no labels were given (--labels)"


@dataclass(frozen=True)
class Labels:
    """Classes of the images.

    Attributes:
        of: by the name of a set ("real", "train", or a generator), the class of each image; sets without labels are
            left out.
        steps: of training each classifier, on 32 images each.
    """

    of: Mapping[str, Sequence[str]]
    steps: int = STEPS

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the real images, training images included."""
        return tuple(sorted({name for key in ("real", "train") for name in self.of.get(key, ())}))

    def check(self) -> None:
        """Every labelled set must show every class.

        Raises:
            UserError: no labels of the real images, one class only, a class that real images do not have, a set without
                images of a class, no steps.
        """
        if self.steps < 1:
            raise UserError("a classifier needs at least one step of training", self.steps)
        if "real" not in self.of:
            raise UserError("the utility test needs the classes of the real images", f"labels of {', '.join(self.of)}")
        classes = self.classes
        if len(classes) < 2:
            received = f"{classes[0]} alone" if classes else "none"
            raise UserError("the utility test needs images of at least two classes", received, "Leave out --labels")
        for key, names in self.of.items():
            for strange in sorted(set(names) - set(classes)):
                raise UserError(
                    "samples must be of the classes of the real images",
                    f"{strange} in {key}",
                    did_you_mean(strange, classes),
                )
            missing = sorted(set(classes) - set(names))
            if missing:
                raise UserError(
                    "the utility test needs images of every class in every set",
                    f"none of {', '.join(missing)} in {key}",
                    f"Add some, or leave out the labels of {key}",
                )


def utility_figures(
    images: Mapping[str, Any],
    labels: Labels,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    kept: KeptFigures = NOTHING_KEPT,
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """AUROC on real test images of a classifier of the training images, "train", and of each generator's samples.

    Args:
        images: sets (C, H, W, D) in [-1, 1] with ``keys``, by name; "real" is tested on.
        labels: checked, see :meth:`Labels.check`.
        seed: of what is drawn, of weights and order.
        say: told what is done next.
        kept: figures of earlier runs, of the same sets.

    Returns:
        the figures by set, without "real"; what they have in common: ``classes``, ``n_train``, ``n_test``, ``size``,
        and ``held_out``: whether training images were given, so that none of them is tested on; or the ``reason`` why
        no classifier was trained.
    """
    trained = set(images["train"].keys) if "train" in images else set()
    tested = [n for n, key in enumerate(images["real"].keys) if key not in trained]
    arms = [key for key in images if key != "real" and key in labels.of]
    figures: dict[str, Figure] = {
        key: absent(f"no labels of {key} were given (--labels)") for key in images if key not in ("real", *arms)
    }
    if not tested:
        reason = "every real image is a training image; the test needs held-out ones"
        return {key: absent(reason) for key in images if key != "real"}, {"reason": reason}
    if not arms:
        return figures, {"reason": "no labels were given but those of the real images, which are tested on"}
    index = {name: number for number, name in enumerate(labels.classes)}
    of = {key: [index[name] for name in names] for key, names in labels.of.items()}
    first = images["real"][tested[0]]
    held = min(MOST_IMAGES, MOST_BYTES // (VALUE_BYTES * len(first) * math.prod(_reduced_size(first))))
    count = min([held, *(len(images[key]) for key in arms)])
    shown = [tested[n] for n in spread([of["real"][n] for n in tested], held, seed)]
    truth = [of["real"][n] for n in shown]
    test = cache(partial(_stacked, images["real"], shown))
    common = {
        "classes": list(labels.classes),
        "n_train": count,
        "n_test": len(shown),
        "size": _reduced_size(first),
        "held_out": "train" in images,
    }

    def learned(key: str, chosen: Sequence[int], classes: Sequence[int]) -> Interval:
        seen = _stacked(images[key], chosen)
        return utility_auroc(seen, classes, test(), truth, labels.classes, labels.steps, seed)

    for key in arms:
        say(f"classifier of {key}")
        chosen = spread(of[key], count, seed)
        classes = [of[key][n] for n in chosen]
        origin = [chosen, classes, shown, truth, labels.classes, labels.steps]
        try:
            area = kept("utility", [key, "real"], partial(learned, key, chosen, classes), origin)
            figures[key] = of_interval(area, seed=seed, n_train=count)
        except UserError as error:
            figures[key] = absent(error, seed=seed)
    failed = [f"{key}: {figures[key]['reason']}" for key in arms if "reason" in figures[key]]
    if len(failed) == len(arms):
        return figures, {"reason": "; ".join(failed)}
    return figures, {**common, "steps": labels.steps}


def spread(classes: Sequence[int], count: int, seed: int) -> list[int]:
    """Places of ``count`` items, or all, that hold the classes in their shares and at least one item of each."""
    order = np.random.default_rng(seed).permutation(len(classes))
    numbers = np.asarray(classes)[order]
    rank = np.empty(len(order))
    for number in np.unique(numbers):
        inside = numbers == number
        rank[inside] = np.arange(inside.sum()) / inside.sum()
    return sorted(order[np.argsort(rank, kind="stable")[:count]].tolist())


def _stacked(images: Any, indices: Sequence[int]) -> Tensor:
    """Chosen images (N, C, H, W, D), reduced where they are large; no more than they are is held on the way."""
    first = images[indices[0]]
    size = _reduced_size(first)
    stacked = torch.empty(len(indices), len(first), *size)
    for place, n in enumerate(indices):
        image = images[n].float()
        stacked[place] = image if list(image.shape[1:]) == size else resize_volume(image, size)
    return stacked


def _reduced_size(image: Tensor) -> list[int]:
    """What classifiers see of an image (C, H, W, D), as (H, W, D)."""
    longest = WORKING_SIZE[3 if min(image.shape[1:]) > 1 else 2]
    return [min(length, longest) for length in image.shape[1:]]
