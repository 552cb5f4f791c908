"""Histogram standardisation: one scale of intensities for MRI volumes of different scanners (Nyúl & Udupa).

The landmarks are percentiles of each training volume's foreground (its voxels above its mean), mapped linearly to
[0, 100] and averaged over the volumes; a volume is then bent piecewise linearly until its own percentiles lie on them.
TorchIO holds the method; its fitting reads image files, so each volume passes through a temporary one. TorchIO's
average over N volumes is linear in them, so that it equals the mean of N fittings of one volume each.

Source: L. G. Nyúl, J. K. Udupa, X. Zhang, New variants of a method of MRI scale standardization, IEEE TMI 19 (2000).
"""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from tqdm import tqdm

from medical_diffusion.data.preprocessing.naming import name_of
from medical_diffusion.errors import UserError

#: Landmarks are kept to this many digits, so that the last bits of a library do not make other numbers of them.
DIGITS = 8


class HistogramStandardized(MapTransform):
    """Bend each volume's intensities until its percentiles lie on the landmarks; shape, affine and metadata stay.

    Args:
        landmarks: of :func:`fit_landmarks`; may be set later, before the first call.

    Raises:
        UserError: no landmarks at a call.
    """

    def __init__(
        self, keys: KeysCollection, landmarks: Sequence[float] | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.landmarks = landmarks

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, Any]:
        """Standardise ``data[key]`` of shape ``(C, H, W, D)``."""
        import torchio

        if self.landmarks is None:
            raise UserError(
                "histogram standardisation needs landmarks", "none", "Fit them on the training volumes: fit_landmarks"
            )
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            plain = torch.as_tensor(image.as_tensor() if isinstance(image, MetaTensor) else image)
            bend = torchio.HistogramStandardization(
                {"image": np.asarray(self.landmarks, dtype=float)}, masking_method=_foreground
            )
            bent = bend(torchio.Subject(image=torchio.ScalarImage(tensor=plain.float()))).get_first_image().data
            item[key] = MetaTensor(bent).copy_meta_from(image) if isinstance(image, MetaTensor) else bent
        return item


def fit_landmarks(volumes: Iterable[torch.Tensor], progress: bool = True, total: int | None = None) -> list[float]:
    """Landmarks of the training volumes, in [0, 100] and increasing.

    Args:
        volumes: ``(C, H, W, D)`` each, read one after the other.
        progress: show a progress bar.
        total: number of volumes, for the bar.

    Raises:
        UserError: no volume; a volume with too few different values.
    """
    import torchio

    fitted: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "volume.nii"
        for volume in tqdm(volumes, "Fitting histogram landmarks", total, unit="volume", disable=not progress):
            voxels = volume[0].numpy(force=True).astype(np.float32)
            if not np.ptp(voxels) > 0:
                raise UserError(
                    "histogram standardisation needs volumes that vary",
                    f"{name_of(volume)} with {float(voxels.min()):g} everywhere",
                    "Remove the volume",
                )
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), file)
            with np.errstate(divide="ignore"):  # equal percentiles are refused below
                one = torchio.HistogramStandardization.train([file], masking_function=_foreground, progress=False)
            if not np.isfinite(one).all() or not one[-1] > one[0]:
                raise UserError(
                    "histogram standardisation needs volumes of many values above their mean",
                    name_of(volume),
                    "Remove the volume, or use --histogram_standardization false",
                )
            fitted.append(one)
    if not fitted:
        raise UserError("histogram landmarks need at least one training volume", "none")
    return [float(f"{value:.{DIGITS}g}") for value in np.mean(fitted, axis=0)]


def _foreground(volume: torch.Tensor) -> torch.Tensor:
    return volume > volume.mean()
