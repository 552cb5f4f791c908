"""Is a sample a copy of a training image? A likelihood ratio, over flips, shifts, contrast and noise.

Faces of strangers are alike, and so are their chests: a small distance to a training image proves nothing. So two
explanations of a sample ``q`` are compared for each training image ``t``:

    copy:      q = t + noise of variance v                   stranger:  q = mean + N(0, lambda_k) + noise, for each k
    score(t) = 1/2 sum_k [ q_k^2 / (lambda_k + v) + log(1 + lambda_k / v) - (q_k - t_k)^2 / v ]

``k`` runs over the principal axes of the training images' low coefficients of the discrete cosine transform, and
``lambda_k`` is how much they differ along them, so that what all share (the ribs, the border) counts for nothing and
what tells people apart counts most. It is the log of the ratio of the two likelihoods (the matched filter of Neyman and
Pearson); ``v`` is the one of a few noise levels that explains the sample best, the lowest not zero, since a generator
blurs a little.

Each image is brought to zero mean and unit variance (brightness and contrast forgiven), and the score is the highest
over training images, over flips of every axis, and over shifts up to ``SHIFT`` voxels: the middle of each training
image is compared with every such window of the sample. A flip only turns signs of the transform. Images longer than
``WORKING_SIZE`` along an axis are reduced to it. The search has two stages: correlation of the whitened coefficients
picks ``CANDIDATES`` training images of each sample, and the ratio is computed for these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor
from tqdm import tqdm

from medical_diffusion.data.augmentation import flip_variants
from medical_diffusion.data.preprocessing.resize import resize_volume
from medical_diffusion.errors import UserError

SHIFT = 2
WORKING_SIZE = {2: 32, 3: 48}
"""Longest axis that is compared, by the number of axes longer than 1."""
MAX_COEFFICIENTS = 600
CANDIDATES = 16
NOISE_LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Variance of the noise by that of the image, of which the best is taken."""
SEARCH_NOISE = 0.4
"""Noise that the first stage of the search allows for."""
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Matches:
    """The best explanation of each query as a copy.

    Attributes:
        scores: log likelihood ratio of copy against stranger, ``(Q,)``; higher is more like a copy.
        indices: the training image, ``(Q,)``.
        flips: axes along which the query is mirrored, a tuple of 0 (H), 1 (W), 2 (D) for each.
        shifts: how far its content lies from the training image's, in voxels of the search, a tuple of three for each.
        correlations: Pearson's correlation of the aligned pair in the coefficients that were compared, ``(Q,)``.
    """

    scores: Tensor
    indices: Tensor
    flips: list[tuple[int, ...]]
    shifts: list[tuple[int, int, int]]
    correlations: Tensor


class CopySearch:
    """Training images, prepared for the search; a few hundred numbers of each are kept.

    Args:
        training: images (C, H, W, D) of one shape by index, at least three; read once.
        progress: show a bar.

    Attributes:
        shape: of the images, (C, H, W, D).
        size: at which they are compared, (H, W, D); see :func:`working_size`.
        window: how many of its voxels are compared at once, (H, W, D).
        flips: of a query that are tried, tuples of axes 0 (H), 1 (W), 2 (D), the empty one first.

    Raises:
        UserError: fewer than three images, or images that are all the same.
    """

    def __init__(self, training: Sequence[Tensor], progress: bool = True) -> None:
        if len(training) < 3:
            raise UserError("a search for copies needs at least three training images", len(training))
        self.shape = tuple(training[0].shape)
        self.size = working_size(self.shape[1:])
        self._margin = [SHIFT if n >= 4 * SHIFT else 0 for n in self.size]
        self.window = [n - 2 * m for n, m in zip(self.size, self._margin, strict=True)]
        kept = _kept_coefficients(self.window, self.shape[0])
        self._bases = [
            torch.from_numpy(dct(np.eye(n), axis=0, norm="ortho")[:k]).float()
            for n, k in zip(self.window, kept, strict=True)
        ]
        self.flips = flip_variants([axis for axis in range(3) if self.window[axis] > 1])
        signs = [torch.tensor([(-1.0) ** k for k in range(n)]) for n in kept]
        self._signs = torch.stack([self._sign(signs, axes) for axes in self.flips])
        self._shifts = list(itertools.product(*[range(-m, m + 1) for m in self._margin]))
        bar = tqdm(training, "Training images", unit="image", leave=False, disable=not progress)
        rows = torch.stack([self._coefficients(image, [(0, 0, 0)])[0] for image in bar])
        self._variance, self._rotation = _principal(rows - rows.mean(0))
        self._mean = rows.mean(0) @ self._rotation
        self._training = rows @ self._rotation - self._mean
        if float(self._variance.sum()) <= 10 * _SMALLEST * len(self._variance):
            raise UserError("a search for copies needs training images that differ", f"{len(training)} equal images")

    def __len__(self) -> int:
        return len(self._training)

    @torch.no_grad()
    def search(
        self, queries: Sequence[Tensor], exclude: Sequence[int] | None = None, label: str = "Samples"
    ) -> Matches:
        """The best match of each query.

        Args:
            queries: images of the training images' shape.
            exclude: for each query a training image that does not count, such as itself; -1 for none.
            label: of the progress bar; empty for none.

        Raises:
            UserError: no queries, or another shape.
        """
        if len(queries) == 0:
            raise UserError("a search for copies needs at least one image", 0)
        if tuple(queries[0].shape) != self.shape:
            raise UserError("images must have the training images' shape", (tuple(queries[0].shape), self.shape))
        found = []
        for n in tqdm(range(len(queries)), label, unit="image", leave=False, disable=not label):
            found.append(self._best(queries[n], -1 if exclude is None else exclude[n]))
        scores, indices, variants, correlations = zip(*found, strict=True)
        places = [divmod(v, len(self._shifts)) for v in variants]
        return Matches(
            torch.tensor(scores),
            torch.tensor(indices),
            [self.flips[p[0]] for p in places],
            [self._shifts[p[1]] for p in places],
            torch.tensor(correlations),
        )

    def _best(self, query: Tensor, exclude: int) -> tuple[float, int, int, float]:
        windows = self._coefficients(query, self._shifts)
        raw = (self._signs[:, None] * windows).flatten(0, 1) @ self._rotation  # (flips * shifts, K)
        whitening = (self._variance + SEARCH_NOISE).rsqrt()
        whitened = (raw - self._mean) * whitening
        references = self._training * whitening
        cosine = (whitened @ references.T) / (whitened.norm(dim=1)[:, None] * references.norm(dim=1) + _SMALLEST)
        likeness = cosine.amax(0)
        if exclude >= 0:
            likeness[exclude] = -math.inf
        count = min(CANDIDATES, len(self) - (exclude >= 0))
        chosen = likeness.topk(count).indices
        scores = self._ratio(raw, self._training[chosen])
        best = int(scores.argmax())
        variant, candidate = divmod(best, count)
        t, q = self._training[chosen[candidate]] + self._mean, raw[variant]
        correlation = torch.corrcoef(torch.stack([t[1:], q[1:]]))[0, 1] if len(t) > 2 else torch.tensor(math.nan)
        return float(scores.flatten()[best]), int(chosen[candidate]), variant, float(correlation.nan_to_num())

    def _ratio(self, raw: Tensor, references: Tensor) -> Tensor:
        """Log likelihood ratio of every variant (V, K) and reference (R, K), the best of all noise levels, (V, R)."""
        best = raw.new_full((len(raw), len(references)), -math.inf)
        squares = references.square().sum(1)
        for level in NOISE_LEVELS:
            # noise of variance v has shrunk the sample's contrast when it was brought to unit variance
            q = raw * math.sqrt(1 + level - NOISE_LEVELS[0]) - self._mean
            stranger = (q.square() / (self._variance + level)).sum(1) + torch.log1p(self._variance / level).sum()
            distance = q.square().sum(1)[:, None] - 2 * q @ references.T + squares
            best = torch.maximum(best, (stranger[:, None] - distance / level) / 2)
        return best

    def windows(self, image: Tensor, shifts: Sequence[tuple[int, ...]]) -> Tensor:
        """Parts of an image, reduced to ``size``, that the search compares: its middle, moved by each shift.

        Args:
            image: (C, H, W, D) of ``shape``.
            shifts: in voxels of ``size``, three each, in [-``SHIFT``, ``SHIFT``]; 0 along axes of fewer than 8.

        Returns:
            (shifts, C, *``window``), float32.
        """
        image = image.float()
        if tuple(image.shape[1:]) != self.size:
            image = resize_volume(image, self.size)
        starts = [[m + s for m, s in zip(self._margin, shift, strict=True)] for shift in shifts]
        h, w, d = self.window
        return torch.stack([image[:, a : a + h, b : b + w, c : c + d] for a, b, c in starts])

    def _coefficients(self, image: Tensor, shifts: Sequence[tuple[int, ...]]) -> Tensor:
        """Low coefficients of each window of an image, ``(shifts, K)``."""
        x = self.windows(image, shifts)
        x = x - x.mean((1, 2, 3, 4), keepdim=True)
        x = x / x.square().mean((1, 2, 3, 4), keepdim=True).sqrt().clamp_min(_SMALLEST)
        for axis, basis in zip((4, 3, 2), reversed(self._bases), strict=True):
            x = (x.movedim(axis, -1) @ basis.T).movedim(-1, axis)
        return x.flatten(1)

    def _sign(self, signs: Sequence[Tensor], axes: tuple[int, ...]) -> Tensor:
        ones = [s if axis in axes else torch.ones_like(s) for axis, s in enumerate(signs)]
        plane = ones[0][:, None, None] * ones[1][None, :, None] * ones[2][None, None]
        return plane.flatten().repeat(self.shape[0])


def working_size(size: Sequence[int]) -> tuple[int, int, int]:
    """Size at which images are compared: none of its axes is longer than ``WORKING_SIZE``."""
    longest = WORKING_SIZE[3 if min(size) > 1 else 2]
    h, w, d = (min(n, longest) for n in size)
    return (h, w, d)


def aligned(image: Tensor, flips: Sequence[int], shift: Sequence[int], size: Sequence[int]) -> Tensor:
    """An image turned and moved onto its match, for a picture.

    Args:
        image: (C, H, W, D).
        flips, shift: of :class:`Matches`.
        size: at which the search compared, of :class:`CopySearch`.
    """
    # the window is cut first and mirrored afterwards, so the shift is that of the unmirrored image
    steps = [round(s * n / w) for s, n, w in zip(shift, image.shape[1:], size, strict=True)]
    moved = torch.roll(image, [-s for s in steps], (1, 2, 3))
    return moved.flip([axis + 1 for axis in flips]) if flips else moved


def _kept_coefficients(window: Sequence[int], channels: int) -> list[int]:
    """How many low coefficients of each axis: half of them, fewer where their product would exceed the limit."""
    share, kept = 0.5, list(window)
    while True:
        kept = [max(1, min(n, round(share * n) if n > 3 else n)) for n in window]
        if math.prod(kept) * channels <= MAX_COEFFICIENTS or share < 0.02:
            return kept
        share *= 0.95


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (K,) and axes (K, K) of centred rows (N, K): a rotation, so that white noise stays white.

    Few images say little of covariances: these are shrunk by K / (N + K), in the manner of Ledoit and Wolf 2004.
    """
    count, width = rows.shape
    covariance = (rows.T @ rows / count).double()
    diagonal = torch.diag(covariance.diagonal())
    shrinkage = width / (count + width)
    variance, axes = torch.linalg.eigh(covariance * (1 - shrinkage) + diagonal * shrinkage)
    return variance.clamp_min(_SMALLEST).float(), axes.float()
