"""Synthetic volumes as files: a NIfTI with units and affine, and beside it a JSON that says how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from torch import Tensor

from medical_diffusion.data.preprocessing import IntensityScaling
from medical_diffusion.files import write_atomically, write_json


def centred_affine(size: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """RAS+ affine (4, 4) in millimetres with the origin in the middle of the volume."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.asarray(size) - 1) / 2.0 * np.asarray(spacing)
    return affine


class SampleWriter:
    """Writes ``sample_<seed>.nii.gz`` and ``sample_<seed>.json``.

    Args:
        output_dir: folder of the samples.
        intensity: maps [-1, 1] back to Hounsfield units or relative values.
        spacing: millimetres per voxel.
        provenance: what is the same for all samples: sampler, steps, hash of the weights, versions.
    """

    def __init__(
        self,
        output_dir: str | Path,
        intensity: IntensityScaling,
        spacing: Sequence[float],
        provenance: Mapping[str, Any],
    ) -> None:
        self.output_dir, self.intensity = Path(output_dir), intensity
        self.spacing, self.provenance = tuple(spacing), dict(provenance)

    @property
    def unit(self) -> str:
        """Unit of the written values."""
        return "HU" if self.intensity.is_physical else "relative, 0 to 1"

    @property
    def display_range(self) -> tuple[float, float]:
        """Values shown as black and white."""
        if self.intensity.lower is None or self.intensity.upper is None or not self.intensity.is_physical:
            return 0.0, 1.0
        return self.intensity.lower, self.intensity.upper

    def image_path(self, seed: int) -> Path:
        return self.output_dir / f"sample_{seed}.nii.gz"

    def sidecar_path(self, seed: int) -> Path:
        return self.output_dir / f"sample_{seed}.json"

    def is_written(self, seed: int) -> bool:
        """Whether image and sidecar are there; the sidecar is written last."""
        return self.image_path(seed).is_file() and self.sidecar_path(seed).is_file()

    def write(self, seed: int, volume: Tensor) -> Path:
        """Write one volume (1, H, W, D) in [-1, 1]."""
        values = self.intensity.to_physical(volume[0].float().cpu()).numpy()
        data = np.rint(values).astype(np.int16) if self.intensity.is_physical else values.astype(np.float32)
        image = nibabel.Nifti1Image(data, centred_affine(data.shape, self.spacing))
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"synthetic, medical_diffusion"
        image.set_qform(image.affine, code="scanner")
        image.set_sform(image.affine, code="scanner")
        path = write_atomically(self.image_path(seed), lambda part: nibabel.save(image, part))
        sidecar = {"synthetic": True, "seed": seed, "unit": self.unit, **self.provenance}
        write_json(self.sidecar_path(seed), sidecar)
        return path

    def read(self, seed: int) -> np.ndarray:
        """A written sample (H, W, D) in its unit."""
        return np.asarray(nibabel.load(self.image_path(seed)).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
