"""Are the organs of a chest CT there and in their places? Counted from HU alone, without a trained network.

The body is what exceeds -300 HU, with its cavities filled. Inside it the lungs are air, one on each side of the spine;
the spine is bone near the midline of the back, slice after slice; the heart is soft tissue between the lungs, in the
lower half of their height, that reaches further into the left side of the chest than into the right. The limits are
wide: they hold for adults and tolerate small errors of a generative model, but not a missing, moved or mirrored organ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from medical_diffusion.errors import UserError

AIR_BELOW_HU = -300.0  # half way between lung and soft tissue
LUNG_BELOW_HU = -400.0
LUNG_ABOVE_HU = -990.0  # the mean of a lung is above that of plain air
BONE_ABOVE_HU = 140.0  # vertebrae that share voxels of 10 mm with soft tissue
SOFT_TISSUE_HU = (-80.0, 250.0)  # mean of the heart, contrast agent included


@dataclass(frozen=True)
class ChestAnatomy:
    """What was found; ``body`` ... ``heart`` are verdicts, the rest the figures they rest on (NaN: not measurable)."""

    body: bool
    left_lung: bool
    right_lung: bool
    spine: bool
    heart: bool
    body_share: float  # of the field of view
    body_unity: float  # share of all tissue that belongs to the largest connected piece
    left_lung_share: float  # of the body
    right_lung_share: float
    spine_continuity: float  # share of the body's slices that show a vertebra in line with the others
    heart_width_mm: float  # widest tissue between the lungs at the level of the heart
    heart_asymmetry_mm: float  # mean further reach into the left chest than into the right
    heart_hu: float  # mean between the lungs at the level of the heart

    @property
    def complete(self) -> bool:
        """Whether every organ was found in its place."""
        return self.body and self.left_lung and self.right_lung and self.spine and self.heart

    def as_dict(self) -> dict[str, bool | float]:
        """All fields and ``complete``, for a report."""
        return {**asdict(self), "complete": self.complete}


def chest_anatomy(hu_volume: np.ndarray, spacing: Sequence[float]) -> ChestAnatomy:
    """Look for body, lungs, spine and heart.

    Args:
        hu_volume: (H, W, D) in HU, axes to the right, anterior, superior (RAS+); a depth of 1 is one slice at the
            level of the heart.
        spacing: mm along the three axes.

    Raises:
        UserError: not a finite volume of three axes, or a spacing that is not positive.
    """
    volume = np.asarray(hu_volume, np.float32)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise UserError("chest anatomy needs one finite volume (H, W, D) in HU", f"array of shape {volume.shape}")
    size = np.asarray(spacing, float)
    if size.shape != (3,) or not (np.isfinite(size) & (size > 0)).all():
        raise UserError("spacing must be three positive lengths in mm", spacing)

    body, unity = _body(volume)
    share = float(body.mean())
    extent = np.array([np.ptp(index) + 1 if len(index) else 0 for index in np.nonzero(body)]) * size
    offset = np.abs(np.array(ndimage.center_of_mass(body)[:2]) / volume.shape[:2] - 0.5) if share else np.ones(2)
    centred = bool((offset < 0.2).all() and 180 <= extent[0] <= 520 and 110 <= extent[1] <= 420)

    spine, continuity, midline = _spine(volume, body, size)
    lungs, shares = _lungs(volume, body, midline, size)
    heart, width, asymmetry, hu = _heart(volume, body, lungs, midline, size)
    return ChestAnatomy(
        body=centred and unity >= 0.9 and 0.15 <= share <= 0.95,
        left_lung=0.03 <= shares[0] <= 0.4 and shares[0] > 0.25 * shares[1],
        right_lung=0.03 <= shares[1] <= 0.4 and shares[1] > 0.25 * shares[0],
        spine=spine,
        heart=heart,
        body_share=share,
        body_unity=unity,
        left_lung_share=shares[0],
        right_lung_share=shares[1],
        spine_continuity=continuity,
        heart_width_mm=width,
        heart_asymmetry_mm=asymmetry,
        heart_hu=hu,
    )


def _body(volume: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest piece of tissue with its cavities filled slice by slice, and its share of all tissue."""
    tissue = volume > AIR_BELOW_HU
    pieces, count = ndimage.label(tissue)
    if not count:
        return tissue, 0.0
    sizes = np.bincount(pieces.ravel())[1:]
    largest = pieces == int(sizes.argmax()) + 1
    filled = np.stack([ndimage.binary_fill_holes(largest[..., z]) for z in range(volume.shape[2])], axis=2)
    return filled, float(sizes.max() / sizes.sum())


def _spine(volume: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> tuple[bool, float, np.ndarray]:
    """Verdict, continuity, and the x index of the midline in every slice (a straight line through the vertebrae)."""
    height, _, depth = volume.shape
    x, y = np.ogrid[:height, : volume.shape[1]]
    found, middle = np.full(depth, np.nan), np.full(depth, (height - 1) / 2)
    area = body.sum((0, 1))
    levels = np.flatnonzero(area > 0.25 * max(area.max(), 1))
    for z in levels:
        columns = np.flatnonzero(body[..., z].any(1))
        rows = np.flatnonzero(body[..., z].any(0))
        centre, back = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
        near = (np.abs(x - centre) * spacing[0] < 50) & (y < back)
        bone = (volume[..., z] > BONE_ABOVE_HU) & body[..., z] & near
        weight = np.where(bone, volume[..., z], 0).sum(1)
        window = max(1, round(40 / spacing[0]))  # the width of a vertebra with some of its processes
        sums = np.convolve(weight, np.ones(window), mode="same")
        if weight.any():
            peak = np.abs(np.arange(height) - sums.argmax()) * spacing[0] <= 25
            if (bone[peak].sum() * spacing[0] * spacing[1]) >= 250:
                found[z] = np.average(np.arange(height)[peak], weights=weight[peak] + 1e-6)
    seen = np.flatnonzero(np.isfinite(found))
    if len(seen) == 0:
        return False, 0.0, middle
    slope, start = np.polyfit(seen, found[seen], 1) if len(seen) > 2 else (0.0, float(found[seen].mean()))
    middle = start + slope * np.arange(depth)
    in_line = np.abs(found[seen] - middle[seen]) * spacing[0] < 15
    continuity = float(in_line.sum() / len(levels))
    tilt = abs(slope) * spacing[0] / spacing[2]
    return bool(continuity >= 0.75 and tilt < 0.35), continuity, middle


def _lungs(
    volume: np.ndarray, body: np.ndarray, midline: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, tuple[float, float]]:
    """Mask (2, H, W, D) of left and right lung, the largest piece of air on each side, and their shares of the body."""
    air = (volume < LUNG_BELOW_HU) & body
    left = np.arange(volume.shape[0])[:, None, None] < midline
    lungs = np.zeros((2, *volume.shape), bool)
    for side, half in enumerate((left, ~left)):
        pieces, count = ndimage.label(air & half)
        if count:
            largest = pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1
            if volume[largest].mean() > LUNG_ABOVE_HU:
                lungs[side] = largest
    total = max(int(body.sum()), 1)
    return lungs, (float(lungs[0].sum() / total), float(lungs[1].sum() / total))


def _turn(body: np.ndarray, spacing: np.ndarray) -> float:
    """Slope dx/dy (in mm) of the body's front-to-back axis, from the second moments of its cross-section."""
    x, y = (index * step for index, step in zip(np.nonzero(body), spacing[:2], strict=True))
    (xx, xy), (_, yy) = np.cov(x, y)
    if xx < 1.15 * yy:  # nearly round: no axis to be seen
        return 0.0
    return float(np.clip(-np.tan(0.5 * np.arctan2(2 * xy, xx - yy)), -0.3, 0.3))


def _heart(
    volume: np.ndarray, body: np.ndarray, lungs: np.ndarray, midline: np.ndarray, spacing: np.ndarray
) -> tuple[bool, float, float, float]:
    """Verdict, width, asymmetry and mean HU of the tissue between the lungs at the level of the heart.

    Levels: the lower 55 % of the lungs' height, where both lungs still have much of their widest cross-section. Below
    that the dome of the liver would count as tissue on the right.
    """
    nothing = (False, float("nan"), float("nan"), float("nan"))
    areas = lungs.sum((1, 2))  # (2, D)
    both = np.flatnonzero((areas > 0).all(0))
    if len(both) == 0:
        return nothing
    wide = [z for z in both if (areas[:, z] >= 0.55 * areas.max(1)).all()]
    height = (np.array(wide) - both[0]) / max(both[-1] - both[0], 1)
    gaps = [_gap(lungs[..., z], midline[z], _turn(body[..., z], spacing), spacing, volume[..., z]) for z in wide]
    low = sorted(gap for gap, h in zip(gaps, height, strict=True) if gap and h <= 0.55)
    above = [gap[0] for gap, h in zip(gaps, height, strict=True) if gap and h > 0.55]
    if not low:
        return nothing
    widest = low[-max(1, len(low) // 2) :]
    width, asymmetry, hu = (float(np.mean([gap[i] for gap in widest])) for i in range(3))
    upper = float(np.median(above)) if above else 0.0
    in_place = 74 <= width <= 200 and width > upper and asymmetry >= 5
    return bool(in_place and SOFT_TISSUE_HU[0] <= hu <= SOFT_TISSUE_HU[1]), width, asymmetry, hu


def _gap(
    lungs: np.ndarray, middle: float, turn: float, spacing: np.ndarray, values: np.ndarray
) -> tuple[float, float, float] | None:
    """Width, asymmetry (mm) and mean HU of what lies between the lungs of one slice, in its front half."""
    left, right = lungs
    rows = np.flatnonzero(left.any(0) & right.any(0))
    if len(rows) == 0:
        return None
    back, rows = rows[0], rows[rows >= rows.mean()]  # the spine stands behind
    inner_left = np.array([np.flatnonzero(left[:, y]).max() for y in rows])
    inner_right = np.array([np.flatnonzero(right[:, y]).min() for y in rows])
    middle = middle + (rows - back - 20 / spacing[1]) * spacing[1] * turn / spacing[0]
    width = (inner_right - inner_left - 1) * spacing[0]
    asymmetry = (2 * middle - inner_left - inner_right) * spacing[0]
    between = np.concatenate([values[a + 1 : b, y] for a, b, y in zip(inner_left, inner_right, rows, strict=True)])
    return float(width.max()), float(asymmetry.mean()), float(between.mean()) if between.size else AIR_BELOW_HU
