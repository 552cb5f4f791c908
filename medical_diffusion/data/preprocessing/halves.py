"""Left and right half of a volume: each breast on its own, as Medical Diffusion trained on.

With a mask of the breasts, its bounding box is cut at its midline, and each half is the box of the mask on that side.
Without one the breasts are looked for: the body is what is brighter than Otsu's threshold, its front half holds the
breasts, and the middle of its width is the midline. A plane counts as body where it holds a twentieth of what the
fullest plane of its axis holds, so that specks of noise do not widen the box. Either box gets a margin.

A mask of a single breast has no two halves. Between two breasts planes from left to right hold little of the mask; a
mask without such a gap in its middle third is refused where it lies on one side of the volume, and otherwise cut with
a warning, since a box drawn around both breasts looks the same.

The paper states neither margin nor mirroring: halves are not mirrored, so that a left and a right breast stay what
they are. Axes are found by the affine, whichever their order.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop

from medical_diffusion.data.preprocessing.naming import name_of
from medical_diffusion.errors import UserError

logger = logging.getLogger(__name__)

SIDES = ("left", "right")
#: Values of a mask that are breast: the breast, and fibroglandular tissue where it is told apart.
BREAST = (1, 2)
#: Share of the fullest plane's body voxels from which on a plane counts as body.
LEAST_SHARE = 0.05
#: Share of the fullest plane's mask voxels below which a plane is a gap between two breasts.
GAP_SHARE = 0.5
#: Largest distance of a mask's corners from its image's, in voxels.
TOLERANCE = 0.1

Box = tuple[list[int], list[int]]


class CropHalfd(MapTransform):
    """Cut a volume to its left or right half, the one that the item's ``side`` names (the patient's own side).

    Args:
        mask_key: key of the breast mask, a volume on the image's grid; removed from the item.
        side_key: key of "left" or "right".
        margin: millimetres kept around the box, inside the volume.
        labels: values of the mask that are breast; others, such as a chest wall, are not.

    Raises:
        UserError: a mask of another shape or place than its image, without a voxel, or of one breast on one side of the
            volume; no body found; another side.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "mask",
        side_key: str = "side",
        margin: float = 10.0,
        labels: Sequence[int] = BREAST,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if margin < 0:
            raise UserError("the margin of a half must be 0 mm or more", margin)
        self.mask_key, self.side_key, self.margin = mask_key, side_key, float(margin)
        self.labels = tuple(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop ``data[key]``, a ``MetaTensor`` of shape ``(C, H, W, D)``."""
        item = dict(data)
        mask, side = item.pop(self.mask_key, None), item.get(self.side_key)
        if side not in SIDES:
            raise UserError(f"{self.side_key} must be left or right", side)
        for key in self.key_iterator(item):
            image = item[key]
            if mask is not None:
                check_mask(mask, image)
                inside = breast_of_mask(mask, side, self.labels)
            else:
                inside = breast_by_outline(image, side)
            start, stop = _with_margin(_box(inside), image, self.margin)
            item[key] = SpatialCrop(roi_start=start, roi_end=stop)(image)
        return item


def check_mask(mask: MetaTensor, image: MetaTensor) -> None:
    """Refuse a mask that lies elsewhere than its image.

    Raises:
        UserError: another shape, or corners that lie apart.
    """
    remedy = "Resample the mask to its image, or remove it to have the breasts found by their outline"
    if mask.shape[1:] != image.shape[1:]:
        shapes = f"{tuple(mask.shape[1:])} of {name_of(mask)} for {tuple(image.shape[1:])} of {name_of(image)}"
        raise UserError("a mask must have the shape of its image", shapes, remedy)
    last = np.asarray(image.shape[1:]) - 1.0
    corners = np.stack([np.append(where * last, 1.0) for where in np.ndindex(2, 2, 2)])
    apart = np.abs(corners @ (_affine(mask) - _affine(image)).T).max()
    if apart > TOLERANCE * _spacing(image).min():
        value = f"{name_of(mask)}, up to {apart:.3g} mm from {name_of(image)}"
        raise UserError("a mask must lie where its image lies (the affine)", value, remedy)


def breast_of_mask(mask: MetaTensor, side: str, labels: Sequence[int] = BREAST) -> np.ndarray:
    """Voxels of these labels on one side of the midline of its bounding box, ``(H, W, D)``.

    Raises:
        UserError: nothing is masked, a single plane, which has no two sides, or one breast on one side of the volume.
    """
    values = mask[0].numpy(force=True)
    inside = np.isin(values, labels)
    if not inside.any():
        raise UserError(
            f"a breast mask must hold voxels of {' or '.join(map(str, labels))}",
            f"{name_of(mask)} with {', '.join(f'{value:g}' for value in np.unique(values)[:8])}",
            "Draw the mask again, or remove it to have the breasts found by their outline",
        )
    axis, _ = _axis_of(mask, "LR")
    start, stop = _box(inside)
    if stop[axis] - start[axis] < 2:
        raise UserError(
            "a breast mask must reach over both sides of its midline",
            f"{name_of(mask)} with one plane from left to right",
            "Draw the mask again, or remove it to have the breasts found by their outline",
        )
    _check_two_breasts(inside, axis, name_of(mask), warn=side == SIDES[0])
    return _on_side(inside, mask, side, (start[axis] + stop[axis]) / 2)


def _check_two_breasts(inside: np.ndarray, axis: int, name: str, warn: bool) -> None:
    """Refuse or doubt a mask without a gap, as the module's first lines say.

    Args:
        inside: the mask, ``(H, W, D)``.
        axis: runs from left to right.
        name: of the mask, for the message.
        warn: tell of a mask that is doubtful; both sides of a volume are cut, and one warning is enough.

    Raises:
        UserError: it lies on one side of the volume.
    """
    counts = inside.sum(axis=tuple(other for other in range(3) if other != axis))
    start, stop = (ends[axis] for ends in _box(inside, LEAST_SHARE))
    third = (stop - start) // 3
    if counts[start + third : stop - third].min() < GAP_SHARE * counts.max():
        return
    remedy = "Use --halves false where each volume shows one breast"
    if stop <= len(counts) / 2 or start >= len(counts) / 2:
        raise UserError(
            "a breast mask must hold both breasts where volumes are cut into halves",
            f"{name}, one breast on one side of the volume",
            f"{remedy}, or remove the mask to have the breasts found by their outline",
        )
    if warn:
        logger.warning("Breast mask %s has no gap between two breasts and is cut at its midline. %s.", name, remedy)


def breast_by_outline(image: MetaTensor, side: str) -> np.ndarray:
    """Voxels of the body's front half on one side of its midline, ``(H, W, D)``, as the module's first lines say.

    Raises:
        UserError: nothing stands out from the background.
    """
    import SimpleITK as sitk

    voxels = image[0].numpy(force=True).astype(np.float32)
    if not np.ptp(voxels) > 0:
        value = f"{name_of(image)} with {float(voxels.min()):g} everywhere"
        raise UserError("breasts are found by their outline where a volume varies", value, "Remove the volume")
    body = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(voxels), 0, 1)) > 0
    start, stop = _box(body, LEAST_SHARE)
    width, depth = _axis_of(image, "LR")[0], _axis_of(image, "PA")[0]
    front = _beyond(_within(body, start, stop), image, "PA", (start[depth] + stop[depth]) / 2)
    half = _on_side(front, image, side, (start[width] + stop[width]) / 2)
    if not half.any():
        raise UserError(
            f"a {side} breast must show as an outline where there is no mask",
            name_of(image),
            "Add a mask in a folder masks beside images, or remove the volume",
        )
    return _within(half, *_box(half, LEAST_SHARE))


def _on_side(inside: np.ndarray, image: MetaTensor, side: str, midline: float) -> np.ndarray:
    """What of ``inside`` lies on the patient's ``side`` of the plane at index ``midline``."""
    return _beyond(inside, image, "LR" if side == "right" else "RL", midline)


def _beyond(inside: np.ndarray, image: MetaTensor, ends: str, index: float) -> np.ndarray:
    """What of ``inside`` lies past ``index`` on the way between two ends of the body, such as "LR"."""
    axis, grows = _axis_of(image, ends)
    before = [slice(None)] * 3
    before[axis] = slice(None, round(index)) if grows else slice(round(index), None)
    kept = inside.copy()
    kept[tuple(before)] = False
    return kept


def _within(inside: np.ndarray, start: list[int], stop: list[int]) -> np.ndarray:
    """What of ``inside`` lies in a box."""
    extent = tuple(slice(first, end) for first, end in zip(start, stop, strict=True))
    kept = np.zeros_like(inside)
    kept[extent] = inside[extent]
    return kept


def _box(inside: np.ndarray, least_share: float = 0.0) -> Box:
    """First and past-the-last index per axis of the planes that hold more than ``least_share`` of the fullest one."""
    start, stop = [], []
    for axis in range(3):
        counts = inside.sum(axis=tuple(other for other in range(3) if other != axis))
        held = np.flatnonzero(counts > least_share * counts.max())
        start.append(int(held[0]))
        stop.append(int(held[-1]) + 1)
    return start, stop


def _with_margin(box: Box, image: MetaTensor, margin: float) -> Box:
    voxels = np.ceil(margin / _spacing(image)).astype(int)
    sizes = image.shape[1:]
    start = [max(0, first - int(more)) for first, more in zip(box[0], voxels, strict=True)]
    stop = [min(size, end + int(more)) for end, more, size in zip(box[1], voxels, sizes, strict=True)]
    return start, stop


def _axis_of(image: MetaTensor, ends: str) -> tuple[int, bool]:
    """Array axis that runs between two ends of the body, such as "LR", and whether its index grows to the second."""
    codes = nibabel.aff2axcodes(_affine(image))
    axis = next(n for n, code in enumerate(codes) if code in ends)
    return axis, codes[axis] == ends[1]


def _affine(image: MetaTensor) -> np.ndarray:
    return np.asarray(image.affine, dtype=float)


def _spacing(image: MetaTensor) -> np.ndarray:
    return np.linalg.norm(_affine(image)[:3, :3], axis=0)
