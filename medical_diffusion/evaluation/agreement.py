"""Does a sample show the class that was asked for? Judged by a small classifier of the real images.

The classifier is a ResNet as in Medfusion (Table 4), MONAI's, made small: a strided convolution, four stages of one
residual block, global average, one linear layer (0.12 million weights in 2D, 0.36 in 3D). It is trained from scratch on
the run's own labelled training images, each class drawn equally often, under small shifts and noise, so that neither a
border nor the sharpness of single voxels decides. Its area under the ROC curve on held-out real images says how far its
verdict on samples can be trusted: at 0.5 it says nothing, and the share of agreement on samples is bounded by its
accuracy on real ones.

The same class works for images (depth 1) and volumes. Intervals are Wilson's (1927) at 95 %. The area under the ROC
curve is from ranks: MONAI's ``compute_roc_auc`` gives the same number in a loop over the images, which takes six times
as long for 20,000, and a bootstrap asks for it a thousand times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.nets import ResNet
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from medical_diffusion.errors import UserError, did_you_mean
from medical_diffusion.shapes import per_axis

WIDTHS = (16, 32, 48, 64)
SMALLEST_MAP = 8  # an axis is halved by the first convolution where it is longer than this
SHIFT = 0.06  # of an axis, largest augmentation shift
NOISE = 0.05  # standard deviation of the augmentation's noise, of a range [-1, 1]
BATCH = 32
EVALUATION_BATCH = 64
QUANTILE_95 = 1.959964
Labels = Sequence[int] | Sequence[str] | Tensor


@dataclass(frozen=True)
class Agreement:
    """How many of ``count`` samples were predicted as the class that was asked for."""

    agreed: int
    count: int

    @property
    def share(self) -> float:
        """Agreed by all, in [0, 1]; NaN without samples."""
        return self.agreed / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share; (0, 1) without samples."""
        return wilson_interval(self.agreed, self.count)

    def __str__(self) -> str:
        if not self.count:
            return "no samples"
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({self.agreed} of {self.count}; {100 * low:.0f} to {100 * high:.0f} %)"


@dataclass(frozen=True)
class AgreementReport:
    """Agreement of a set of samples, over all and for each class that was asked for."""

    overall: Agreement
    by_class: dict[str, Agreement]


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); (0, 1) for no trials."""
    if count == 0:
        return 0.0, 1.0
    z, p = QUANTILE_95, successes / count
    middle = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores higher than a negative, ties counted half (Mann-Whitney); NaN for one class.

    Args:
        scores: ``(N,)``, higher for more likely positive.
        positive: ``(N,)``, boolean.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def small_resnet(size: Sequence[int], channels: int, classes: int) -> ResNet:
    """MONAI's ResNet for images (H, W, 1), which it takes as (B, C, H, W), or volumes (B, C, H, W, D), to logits.

    Args:
        size: voxels (H, W, D); the first convolution halves the axes that are long enough.
        channels: of the images.
        classes: how many.
    """
    height, width, depth = per_axis(size, "size")
    axes = (height, width) if depth == 1 else (height, width, depth)
    return ResNet(
        "basic",
        layers=[1] * len(WIDTHS),
        block_inplanes=list(WIDTHS),
        spatial_dims=len(axes),
        n_input_channels=channels,
        conv1_t_size=3,
        conv1_t_stride=tuple(2 if n > SMALLEST_MAP else 1 for n in axes),
        no_max_pool=True,
        num_classes=classes,
    )


class ClassAgreement:
    """A small classifier of real images, and what it says about samples.

    Args:
        classes: names, at least two; their order is that of the labels.
        steps: training steps, each on 32 images; 400 take about a minute and a half on one core at 64x64.
        learning_rate: highest one of a cycle with warm-up and cosine decay (AdamW).
        seed: of weights, order and augmentation: the same seed gives the same classifier.

    Raises:
        UserError: fewer than two classes, or one named twice.
    """

    def __init__(self, classes: Sequence[str], steps: int = 400, learning_rate: float = 3e-3, seed: int = 0) -> None:
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise UserError("agreement needs at least two classes of different names", list(classes))
        self.classes, self.steps, self.learning_rate, self.seed = tuple(classes), steps, learning_rate, seed
        self._network: ResNet | None = None
        self._mean, self._scale = torch.zeros(1), torch.ones(1)
        self._shape: tuple[int, ...] = ()

    def fit(self, images: Tensor, labels: Labels) -> ClassAgreement:
        """Train on real images.

        Args:
            images: (B, C, H, W, D) in [-1, 1].
            labels: class of each, as name or index.

        Raises:
            UserError: not as many labels as images, an unknown class, or a class without images.
        """
        targets = self._indices(labels, images)
        counts = torch.bincount(targets, minlength=len(self.classes))
        if (counts == 0).any():
            missing = [name for name, n in zip(self.classes, counts.tolist(), strict=True) if n == 0]
            raise UserError("a classifier needs training images of every class", f"none of {', '.join(missing)}")
        self._shape = tuple(images.shape[1:])
        axes = [0, 2, 3, 4]
        self._mean = images.mean(axes, keepdim=True)
        self._scale = images.std(axes, keepdim=True).clamp_min(1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = small_resnet(images.shape[2:], images.shape[1], len(self.classes))
            self._train(self._network, images, targets, counts)
        return self

    def _train(self, network: ResNet, images: Tensor, targets: Tensor, counts: Tensor) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=self.steps)
        weights = 1 / counts[targets].double()
        network.train()
        for _ in range(self.steps):
            chosen = torch.multinomial(weights, BATCH, replacement=True)
            logits = self._logits(network, augmented(images[chosen]))
            loss = functional.cross_entropy(logits, targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()

    def _logits(self, network: ResNet, images: Tensor) -> Tensor:
        normalised = (images - self._mean) / self._scale
        return network(normalised[..., 0] if self._shape[-1] == 1 else normalised)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Probability of each class, ``(B, classes)``.

        Raises:
            UserError: before :meth:`fit`, or images of another shape than those it was trained on.
        """
        if self._network is None:
            raise UserError("the classifier must be trained before it judges", remedy="Call fit first")
        if images.dim() != 5 or tuple(images.shape[1:]) != self._shape:
            raise UserError(
                f"images must have the shape (B, {', '.join(map(str, self._shape))}) of the training images",
                tuple(images.shape),
            )
        batches = [self._logits(self._network, part) for part in images.split(EVALUATION_BATCH)]
        return torch.cat(batches).softmax(1) if batches else torch.zeros(0, len(self.classes))

    def auroc(self, images: Tensor, labels: Labels) -> float:
        """Area under the ROC curve on real images that were held out; the mean of one against the rest for more than
        two classes, over the classes that occur; NaN where only one does."""
        targets, scores = self._indices(labels, images).numpy(), self.probabilities(images).numpy()
        chosen = [1] if len(self.classes) == 2 else range(len(self.classes))
        areas = [area_under_roc(scores[:, c], targets == c) for c in chosen]
        known = [area for area in areas if not math.isnan(area)]
        return float(np.mean(known)) if known else math.nan

    def agreement(self, images: Tensor, asked: Labels) -> AgreementReport:
        """Share of images whose most probable class is the asked one.

        Args:
            images: samples (B, C, H, W, D) in [-1, 1], or held-out real images for the classifier's own accuracy.
            asked: class of each, as name or index.

        Raises:
            UserError: as :meth:`fit` and :meth:`probabilities`.
        """
        targets = self._indices(asked, images)
        agreed = self.probabilities(images).argmax(1) == targets
        by_class = {
            name: Agreement(int(agreed[targets == c].sum()), int((targets == c).sum()))
            for c, name in enumerate(self.classes)
        }
        return AgreementReport(Agreement(int(agreed.sum()), len(targets)), by_class)

    def _indices(self, labels: Labels, images: Tensor) -> Tensor:
        if len(labels) != len(images):
            raise UserError("each image needs one class", f"{len(images)} images, {len(labels)} classes")
        known = {name: index for index, name in enumerate(self.classes)}
        indices = []
        for label in labels.tolist() if isinstance(labels, Tensor) else labels:
            if isinstance(label, str) and label not in known:
                raise UserError("a class must be one of the classifier's", label, did_you_mean(label, known))
            index = known[label] if isinstance(label, str) else int(label)
            if not 0 <= index < len(self.classes):
                raise UserError(f"the index of a class must lie in [0, {len(self.classes)})", index)
            indices.append(index)
        return torch.tensor(indices, dtype=torch.int64)


def augmented(images: Tensor) -> Tensor:
    """Each image shifted on its own by up to 6 % of each axis, its border repeated, with a little Gaussian noise.

    Args:
        images: (B, C, H, W, D) in [-1, 1]; drawn from torch's global generator.
    """
    shifted, count = images, len(images)
    for axis, length in enumerate(images.shape[2:], start=2):
        reach = round(SHIFT * length)
        if reach:
            index = torch.arange(length) + torch.randint(-reach, reach + 1, (count, 1))
            shape = [count, 1, 1, 1, 1]
            shape[axis] = length
            shifted = shifted.gather(axis, index.clamp(0, length - 1).view(shape).expand_as(shifted))
    return shifted + NOISE * torch.randn_like(shifted)
