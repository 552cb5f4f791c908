"""Synthetic volumes as files, and beside each a JSON that says how it was made.

A volume is a NIfTI with units and affine; an image (depth 1) is a PNG of 8 or 16 bits that uses their whole range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from torch import Tensor

from medical_diffusion.data.preprocessing import IntensityScaling
from medical_diffusion.errors import UserError
from medical_diffusion.files import write_atomically, write_json
from medical_diffusion.pictures import read_png, write_png
from medical_diffusion.synthesis.class_labels import ClassLabels

PNG_TYPES = {8: np.uint8, 16: np.uint16}


def centred_affine(size: Sequence[int], spacing: Sequence[float], orientation: str = "RAS") -> np.ndarray:
    """RAS+ affine (4, 4) in millimetres with the origin in the middle of the volume.

    Args:
        size: voxels (H, W, D).
        spacing: millimetres per voxel.
        orientation: where each array axis runs to: "RAS" to the right, front and top; "ASR" for sagittal slices.
    """
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(nibabel.orientations.axcodes2ornt(orientation)):
        affine[int(world), axis] = sign * spacing[axis]
    affine[3, 3] = 1.0
    affine[:3, 3] = -affine[:3, :3] @ (np.asarray(size) - 1) / 2.0
    return affine


def intensity_of_samples(
    planar: bool, intensity: str, window: Sequence[float]
) -> tuple[str, tuple[float, float] | None]:
    """How written samples are brought back to [-1, 1]: ``intensity`` and ``window`` of ``data.image_set.ImageSet``.

    Args:
        planar: images (depth 1) use the whole range of their type.
        intensity: of the run; "window" writes stored units, others relative values of 0 to 1.
        window: of the run.
    """
    if planar:
        return "stored", None
    low, high = window if intensity == "window" else (0.0, 1.0)
    return "window", (float(low), float(high))


class SampleWriter:
    """Writes ``sample_<seed>.nii.gz`` (or ``.png``) and ``sample_<seed>.json``.

    Args:
        output_dir: folder of the samples.
        intensity: maps [-1, 1] back to Hounsfield units or relative values.
        spacing: millimetres per voxel.
        provenance: what is the same for all samples: sampler, steps, hash of the weights, versions.
        class_labels: class of each seed, named in its sidecar.
        png_bits: 8 or 16 for images (depth 1), which become PNG files; None for volumes.
        orientation: where each axis of a volume runs to, as in preprocessing.

    Raises:
        UserError: another number of bits.
    """

    def __init__(
        self,
        output_dir: str | Path,
        intensity: IntensityScaling,
        spacing: Sequence[float],
        provenance: Mapping[str, Any],
        class_labels: ClassLabels | None = None,
        png_bits: int | None = None,
        orientation: str = "RAS",
    ) -> None:
        if png_bits is not None and png_bits not in PNG_TYPES:
            raise UserError("PNG files have 8 or 16 bits", png_bits)
        self.output_dir, self.intensity = Path(output_dir), intensity
        self.spacing, self.provenance = tuple(spacing), dict(provenance)
        self.class_labels, self.png_bits = class_labels or ClassLabels(), png_bits
        self.orientation = orientation

    @property
    def unit(self) -> str:
        """Unit of the written values."""
        if self.png_bits is not None:
            return f"grey value, 0 to {2**self.png_bits - 1}"
        return "HU" if self.intensity.is_physical else "relative, 0 to 1"

    @property
    def display_range(self) -> tuple[float, float]:
        """Values shown as black and white."""
        if self.png_bits is not None:
            return 0.0, 2.0**self.png_bits - 1
        if self.intensity.lower is None or self.intensity.upper is None or not self.intensity.is_physical:
            return 0.0, 1.0
        return self.intensity.lower, self.intensity.upper

    def image_path(self, seed: int) -> Path:
        return self.output_dir / f"sample_{seed}.{'nii.gz' if self.png_bits is None else 'png'}"

    def sidecar_path(self, seed: int) -> Path:
        return self.output_dir / f"sample_{seed}.json"

    def is_written(self, seed: int) -> bool:
        """Whether image and sidecar are there; the sidecar is written last."""
        return self.image_path(seed).is_file() and self.sidecar_path(seed).is_file()

    def write(self, seed: int, volume: Tensor) -> Path:
        """Write one volume (1, H, W, D), or an image (1 or 3, H, W, 1), in [-1, 1]."""
        volume = volume.float().cpu()
        path = self._write_nifti(seed, volume) if self.png_bits is None else self._write_png(seed, volume)
        sidecar = {"synthetic": True, "seed": seed, "unit": self.unit, **self.provenance}
        if self.class_labels.names:
            sidecar["class_name"] = self.class_labels.name_of(seed)
        write_json(self.sidecar_path(seed), sidecar)
        return path

    def read(self, seed: int) -> np.ndarray:
        """A written sample (H, W, D), or (H, W, 1, 3) in colour, in its unit."""
        if self.png_bits is not None:
            return np.expand_dims(read_png(self.image_path(seed)), 2).astype(np.float32)
        return np.asarray(nibabel.load(self.image_path(seed)).dataobj, dtype=np.float32)  # type: ignore[attr-defined]

    def _write_nifti(self, seed: int, volume: Tensor) -> Path:
        values = self.intensity.to_physical(volume[0]).numpy()
        data = np.rint(values).astype(np.int16) if self.intensity.is_physical else values.astype(np.float32)
        image = nibabel.Nifti1Image(data, centred_affine(data.shape, self.spacing, self.orientation))
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"synthetic, medical_diffusion"
        image.set_qform(image.affine, code="scanner")
        image.set_sform(image.affine, code="scanner")
        return write_atomically(self.image_path(seed), lambda part: nibabel.save(image, part))

    def _write_png(self, seed: int, image: Tensor) -> Path:
        assert self.png_bits is not None
        unit = (image.clamp(-1.0, 1.0) + 1.0) / 2.0
        values = np.rint(unit.double().numpy() * (2**self.png_bits - 1)).astype(PNG_TYPES[self.png_bits])[..., 0]
        return write_png(self.image_path(seed), values[0] if len(values) == 1 else np.moveaxis(values, 0, -1))
