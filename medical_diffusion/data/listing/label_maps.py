"""What is wrong with a pair of image and label map, found before any long work: values, type, shape and place in space.

A label map holds whole numbers, 0 for the background. Whole numbers that are stored as floats are accepted and said.
Reading every label map takes a while, so what was found is kept beside the caches, by the size and time of each file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medical_diffusion.data.checks import Fault, VolumeHeader, header_faults
from medical_diffusion.data.listing.exposure import DETACHED, named_files
from medical_diffusion.data.reading.headers import read_header
from medical_diffusion.data.reading.reader import load_volume
from medical_diffusion.errors import UserError
from medical_diffusion.files import write_json

logger = logging.getLogger(__name__)

BACKGROUND = 0
#: Distances below this share of a voxel, of any corner, are rounding in a header.
SAME_PLACE = 0.1
#: A label map with more values than this is taken for an image.
MOST_VALUES = 256
WIDEST_RANGE = 1 << 16
_SILENT_BELOW = 20


@dataclass(frozen=True)
class LabelMap:
    """What one label map holds.

    Attributes:
        counts: voxels by value.
        stored: type of its voxels in the file.
    """

    counts: Mapping[int, int]
    stored: str

    @property
    def foreground(self) -> frozenset[int]:
        """Values that are there, without the background."""
        return frozenset(self.counts) - {BACKGROUND}


def survey(
    pairs: Sequence[tuple[Path, Path]],
    planar: bool = False,
    memory: Path | None = None,
    series: Sequence[str | None] | None = None,
) -> tuple[list[LabelMap | None], list[Fault]]:
    """Read the headers of images and label maps and the voxels of label maps.

    Args:
        pairs: paths of (image, label map).
        planar: images of depth 1 are welcome.
        memory: JSON file that keeps what was found for the next run.
        series: UIDs of the images' series, where a DICOM folder holds several.

    Returns:
        what each label map holds (None where it can not be read), and all faults.
    """
    known = _read_memory(memory)
    found: list[LabelMap | None] = []
    faults: list[Fault] = []
    fresh: dict[str, Any] = {}
    uids = series or [None] * len(pairs)
    bar = tqdm(pairs, "Checking label maps", unit="map", disable=len(pairs) < _SILENT_BELOW)
    for (image, label), uid in zip(bar, uids, strict=True):
        mark = [_mark(image), _mark(label), planar, uid]
        entry = known.get(str(label))
        if entry is None or entry["mark"] != mark:
            problems = _pair_faults(image, label, planar, uid)
            held = None if problems else _read(label, problems)
            faults += problems
            if held is None:
                found.append(None)
                continue
            entry = {"mark": mark, "counts": {str(v): n for v, n in held.counts.items()}, "stored": held.stored}
        fresh[str(label)] = entry
        found.append(LabelMap({int(v): n for v, n in entry["counts"].items()}, entry["stored"]))
    if memory is not None and fresh != known:
        write_json(memory, fresh)
    floats = sum(held is not None and held.stored.startswith("float") for held in found)
    if floats:
        logger.info(
            "%d of %d label maps store their whole numbers as floats, which are read as they are", floats, len(pairs)
        )
    return found, faults


def value_faults(
    pairs: Sequence[tuple[Path, Path]], maps: Sequence[LabelMap | None], values: Mapping[int, str]
) -> list[Fault]:
    """Label maps that hold values which stand for no class.

    Args:
        values: names of the classes by value, the background excluded.
    """
    listed = ", ".join(f"{value} {name}" for value, name in {BACKGROUND: "background", **values}.items())
    faults = []
    for (_, label), held in zip(pairs, maps, strict=True):
        odd = sorted(held.foreground - set(values)) if held is not None else []
        if held is not None and odd:
            shown = ", ".join(f"{value} in {held.counts[value]} voxels" for value in odd[:5])
            more = f" and {len(odd) - 5} more values" if len(odd) > 5 else ""
            rule = f"a label map must hold values of its classes only ({listed})"
            faults.append(Fault(label, rule, shown + more, "Correct the map, or name its classes in order: --classes"))
    return faults


def _pair_faults(image: Path, label: Path, planar: bool, series_uid: str | None) -> list[Fault]:
    """Faults of the two headers, each alone and beside the other."""
    headers: list[VolumeHeader] = []
    faults: list[Fault] = []
    for path, uid in ((image, series_uid), (label, None)):
        try:
            headers.append(read_header(path, uid))
        except UserError as error:
            faults.append(Fault.from_error(path, error))
        else:
            faults += header_faults(path, headers[-1], allow_planar=planar)
    if faults:
        return faults
    first, second = headers
    if first.spatial_shape != second.spatial_shape:
        value = f"{second.spatial_shape} for an image of {first.spatial_shape}"
        return [Fault(label, "a label map must have the shape of its image", value, "Resample it onto the image")]
    apart = _distance(first, second)
    if apart > SAME_PLACE * min(first.spacing):
        value = f"corners up to {apart:.3g} mm apart"
        rule = "a label map must lie where its image does (the same affine)"
        return [Fault(label, rule, value, "Resample it onto the image, or correct the header that is wrong")]
    return []


def _distance(first: VolumeHeader, second: VolumeHeader) -> float:
    """Largest distance between the same corners of two grids, mm."""
    last = np.array(first.spatial_shape) - 1
    corners = np.array([[*(last * bits), 1.0] for bits in np.ndindex(2, 2, 2)])
    return float(np.linalg.norm((corners @ (first.affine - second.affine).T)[:, :3], axis=1).max())


def _read(label: Path, problems: list[Fault]) -> LabelMap | None:
    """The values of one map; adds to ``problems`` where it is no label map."""
    try:
        voxels = np.asarray(load_volume(label, allow_planar=True, channels=1)).ravel()
    except UserError as error:
        problems.append(Fault.from_error(label, error))
        return None
    remedy = "Threshold it, or name the folder of the label maps"
    whole = np.isfinite(voxels) & (voxels == np.rint(voxels))
    if not whole.all():
        problems.append(Fault(label, "a label map must hold whole numbers", f"{voxels[~whole][0]:g}", remedy))
        return None
    low, high = int(voxels.min()), int(voxels.max())
    counts = np.bincount(voxels.astype(np.int64) - low) if high - low < WIDEST_RANGE else np.ones(WIDEST_RANGE)
    if np.count_nonzero(counts) > MOST_VALUES:
        rule = f"a label map must hold at most {MOST_VALUES} values"
        problems.append(Fault(label, rule, f"{np.count_nonzero(counts)} or more, {low} to {high}", remedy))
        return None
    return LabelMap({int(v) + low: int(counts[v]) for v in np.flatnonzero(counts)}, read_header(label).dtype)


def _mark(path: Path) -> list[int]:
    """Size and time of a file, and of the files of voxels that a header names."""
    if not path.exists():
        return []
    files = [path, *(named_files(path) if path.suffix.lower() in DETACHED else ())]
    return [number for file in files for number in (file.stat().st_size, file.stat().st_mtime_ns)]


def _read_memory(memory: Path | None) -> dict[str, Any]:
    if memory is None or not memory.is_file():
        return {}
    try:
        return dict(json.loads(memory.read_text(encoding="utf-8")))
    except ValueError:  # half a file of another program's making: look again
        return {}
