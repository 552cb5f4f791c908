"""Validity of one volume: rules that its header and its voxels must keep, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medical_diffusion.errors import UserError

#: Faults printed one by one in an error; the rest is counted.
MAX_FAULTS_SHOWN = 20
#: Files named of one fault that more of them share.
MAX_FILES_NAMED = 3
#: |det| of the unit column vectors below which an affine counts as singular.
SINGULAR_BELOW = 1e-4


@dataclass(frozen=True)
class Fault:
    """One broken rule of one file, or of several that break it alike.

    Attributes:
        others: the further files, as ``grouped`` finds them.
    """

    path: Path
    rule: str
    value: str
    remedy: str
    others: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}; received {self.value}. {self.remedy}" + "." * (
            not self.remedy.endswith("?")
        )

    @property
    def where(self) -> str:
        """The file, or how many there are and the first of them."""
        if not self.others:
            return str(self.path)
        paths = (self.path, *self.others)
        named = ", ".join(map(str, paths[:MAX_FILES_NAMED]))
        return f"{len(paths)} files ({named}{', ...' if len(paths) > MAX_FILES_NAMED else ''})"

    @classmethod
    def from_error(cls, path: Path, error: UserError) -> Fault:
        """The fault that an error about one file tells of; its value does not name the file a second time."""
        value = _unnamed(str(error.received), path)
        return cls(path, error.rule, value, error.remedy or "Replace or remove the file")


@dataclass(frozen=True)
class VolumeHeader:
    """What a file says about its volume before its voxels are read.

    Attributes:
        shape: array shape as stored, spatial axes first; two axes for a flat image, more than three for a series.
        affine: voxel index to millimetres in RAS+, ``(4, 4)``.
        dtype: stored voxel type as text.
        channels: 3 for a flat RGB image, whose colours are no axis of ``shape``; otherwise 1.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: str
    channels: int = 1

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Shape with axes of size 1 added up to three; trailing axes of size 1 beyond three do not count."""
        h, w, d = (*self.shape, 1, 1, 1)[:3]
        return (h, w, d)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres."""
        x, y, z = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (x, y, z)


def header_faults(path: Path, header: VolumeHeader, allow_planar: bool = False) -> list[Fault]:
    """Faults that a header shows.

    Args:
        allow_planar: an image of depth 1 is welcome (2D work); otherwise it is a fault.
    """
    faults = []

    def fault(rule: str, value: object, remedy: str) -> None:
        faults.append(Fault(path, rule, str(value), remedy))

    if any(size > 1 for size in header.shape[3:]):
        fault(
            "a volume must have three axes and one value a voxel",
            f"{len(header.shape)}D data of shape {header.shape}",
            "Extract one time point or channel to a file of its own",
        )
    if any(size < 1 for size in header.shape):
        fault("a volume must not be empty", f"shape {header.shape}", "Export the volume again")
    elif header.spatial_shape[2] == 1 and not allow_planar:
        fault(
            "a volume must have more than one slice here",
            f"a 2D image of shape {header.shape}",
            "Remove the image, or use a bundle and an image_size of depth 1",
        )
    if not header.dtype.startswith(("int", "uint", "float", "bool")):
        fault("voxels must be real numbers", header.dtype, "Convert the volume to a scalar type")
    if not np.isfinite(header.affine).all():
        fault("the affine must be finite", _affine_text(header), "Correct the header's orientation and spacing")
    elif _is_singular(header.affine):
        fault("the affine must be invertible", _affine_text(header), "Correct the header's orientation and spacing")
    return faults


def voxel_faults(path: Path, voxels: np.ndarray) -> list[Fault]:
    """Faults that the voxels show: NaN or infinite values, or the same value everywhere."""
    low, high = float(voxels.min()), float(voxels.max())  # NaN and infinity both show in the extremes
    if not np.isfinite(low) or not np.isfinite(high):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        value = f"{bad} of {voxels.size} voxels NaN or infinite"
        return [Fault(path, "voxels must be finite", value, "Replace these voxels with the background value")]
    if low == high:
        rule = "a volume must not be constant"
        return [Fault(path, rule, f"every voxel is {low:g}", "Export the volume again or remove it")]
    return []


def grouped(faults: Sequence[Fault]) -> list[Fault]:
    """The same faults, with those that more than three files share (rule, value and remedy) as one, where it is first.

    Up to three files are listed one by one.
    """
    files: dict[tuple[str, str, str], list[Path]] = {}
    for fault in faults:
        files.setdefault(_kind(fault), []).extend((fault.path, *fault.others))
    found: list[Fault] = []
    told: set[tuple[str, str, str]] = set()
    for fault in faults:
        kind = _kind(fault)
        if len(files[kind]) <= MAX_FILES_NAMED:
            found.append(fault)
        elif kind not in told:
            found.append(replace(fault, others=tuple(files[kind][1:])))
            told.add(kind)
    return found


def raise_faults(faults: Sequence[Fault], rule: str, remedy: str) -> None:
    """One error for all faults, grouped, the first 20 in full and the rest as a count; nothing where there are none.

    Args:
        rule, remedy: of the error for several faults; a single one speaks for itself.

    Raises:
        UserError: there are faults.
    """
    if not faults:
        return
    faults = grouped(faults)
    if len(faults) == 1:
        raise UserError(faults[0].rule, f"{faults[0].where}: {faults[0].value}", faults[0].remedy)
    lines = [f"- {fault}" for fault in faults[:MAX_FAULTS_SHOWN]]
    if len(faults) > MAX_FAULTS_SHOWN:
        lines.append(f"- and {len(faults) - MAX_FAULTS_SHOWN} more")
    raise UserError(rule, "\n" + "\n".join(lines) + f"\nIn all {len(faults)} faults", remedy)


def _kind(fault: Fault) -> tuple[str, str, str]:
    return fault.rule, fault.value, fault.remedy


def _unnamed(received: str, path: Path) -> str:
    """What an error received, without the path that it begins with: "PATH: x", "PATH, x", "PATH (x)" or "PATH of x"."""
    rest = received.removeprefix(str(path))
    if rest == received or not rest.startswith((" ", ",", ":")):
        return received
    if rest.startswith(" ("):
        return rest[2:].removesuffix(")")
    return rest.lstrip(",: ") if rest.startswith((",", ":")) else f"one{rest}"


def _affine_text(header: VolumeHeader) -> str:
    return np.array2string(header.affine[:3], precision=4, separator=", ").replace("\n", "")


def _is_singular(affine: np.ndarray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return True
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) < SINGULAR_BELOW)
