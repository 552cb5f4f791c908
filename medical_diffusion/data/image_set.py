"""Any folder of images or volumes as a lazy sequence of tensors (C, H, W, D) in [-1, 1], for evaluation.

Found are flat images (PNG, JPEG, TIFF, NumPy, DICOM) or volumes (NIfTI, NRRD, MetaImage, DICOM series), sub-folders
included; where samples ``sample_<seed>`` lie beside their provenance JSON, other pictures in that folder (a preview)
are no samples. What was left out is listed. Volumes are turned to RAS. Every file is read once at the start, so that
what is broken is known before any long work; afterwards nothing is held but paths and keys.

Intensities become [-1, 1] by one of three maps, stated in the ``protocol``. ``window`` and ``stored`` (the range of the
stored type) are the same for every image, so that brightness and contrast of two sets are compared too. ``percentile``
and ``minmax`` are each image's own, for MRI without a scale: then brightness is not compared. Samples whose JSON all
say that they are relative, 0 to 1, were mapped so before training: in place of such a map of its own each is read with
the window 0 to 1.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch import Tensor
from tqdm import tqdm

from medical_diffusion.data.checks import Fault, VolumeHeader
from medical_diffusion.data.image_scaling import OWN_MAPS, RELATIVE, chosen_scaling, scaled
from medical_diffusion.data.listing.classes import resolve_classes
from medical_diffusion.data.listing.discovery import DATASET_DIR, check_dataset_dir
from medical_diffusion.data.listing.exposure import content_mark
from medical_diffusion.data.listing.image_folders import are_relative, find_images
from medical_diffusion.data.listing.volume_file import VolumeFile
from medical_diffusion.data.preprocessing.crop import CenterCropOrPadd
from medical_diffusion.data.preprocessing.resize import resize_volume
from medical_diffusion.data.reading.flat_image import STORED_RANGE
from medical_diffusion.data.reading.formats import ARRAY_SUFFIXES, PILLOW_SUFFIXES
from medical_diffusion.data.reading.headers import read_header
from medical_diffusion.data.reading.images import read_image
from medical_diffusion.data.reading.reader import load_volume
from medical_diffusion.data.reading.stored_ranges import check_one_map
from medical_diffusion.errors import UserError
from medical_diffusion.files import content_hash, write_json
from medical_diffusion.shapes import per_axis

OBSERVED = ("constant", "content", "stored")
"""What is kept of a file that was read."""
READER = 4
"""Raised where the same file becomes other values: what was cached of the older ones no longer counts."""


class ImageSet(Sequence[Tensor]):
    """The images of a folder, read when asked for.

    Args:
        folder: of the images; sub-folders count.
        intensity: "stored", "window", "percentile" (0.5 and 99.5), "minmax"; "auto" is "window" where one is given,
            else "stored" for flat images and "percentile" for volumes.
        window: (lower, upper) in stored units, such as HU.
        image_size: every image is resized to it, (H, W, D), one number, or (H, W) for flat images; without it all must
            be of one size.
        crop_size: centre crop or pad before (with -1, after the intensities, as in training); 0 leaves an axis.
        channels: 1 or 3, converts grey and RGB; without it all must agree.
        labels: "folders" (the first folder is the class), "sidecars" (``class_name`` of each sample's JSON), or the
            path of a CSV or JSON list, which then also says which files belong.
        limit: at most so many images, drawn at random with ``seed``.
        planar: whether files are flat images of their own; found out by default.
        cache_dir: remembers there which files were read without fault, so that they are not read again.
        check_voxels: read every file at once; otherwise before first use :meth:`check_voxels` must be called, so that
            what the headers of several sets say can be compared before.
        option: what errors call the folder.

    Attributes:
        files: what was found and can be read.
        unreadable: what can not, and why.
        ignored: what could be an image and does not count, and why; without the preview beside samples.
        constant: names of images with one value everywhere; they stay in the set.
        is_relative: samples that are read with the window 0 to 1, see above.
        size: (H, W, D) of every image.
        stored_spacing: of volumes, in millimetres along right, front and up: the median of each axis; None for images.
        spacing: the same after crop and resize.
        channels: 1 or 3.
        class_names, labels: the classes, and the index of each image's; empty without labels.
        protocol: how files become tensors, for a report.

    Raises:
        UserError: no folder, nothing readable in it, 2D beside 3D, mixed sizes or channels, images without labels.
    """

    def __init__(
        self,
        folder: str | Path,
        intensity: str = "auto",
        window: Sequence[float] | None = None,
        image_size: int | Sequence[int] | None = None,
        crop_size: int | Sequence[int] | None = None,
        channels: int | None = None,
        labels: str | Path | None = None,
        limit: int | None = None,
        seed: int = 0,
        planar: bool | None = None,
        cache_dir: str | Path | None = None,
        check_voxels: bool = True,
        option: str = DATASET_DIR,
    ) -> None:
        if limit is not None and limit < 1:
            raise UserError("the number of images must be positive", limit)
        self.folder = check_dataset_dir(folder, option)
        files, self.unreadable, self.ignored = find_images(self.folder, labels, planar, option)
        if limit is not None and limit < len(files):
            chosen = np.random.default_rng(seed).choice(len(files), limit, replace=False)
            files = [files[n] for n in sorted(chosen)]
        files, shapes, colours, spacings = self._headers(files)
        depths = Counter("2D" if shape[2] == 1 else "3D" for shape in shapes)
        if len(depths) > 1:
            listed = ", ".join(f"{count} are {kind}" for kind, count in depths.items())
            raise UserError("images of a set must be all 2D or all 3D", f"{self.folder}: {listed}", "Separate them")
        self.is_planar = shapes[0][2] == 1
        self._channels, self._scaling = channels, chosen_scaling(intensity, window, self.is_planar)
        self.is_relative = self._scaling.mode in OWN_MAPS and are_relative(files)
        if self.is_relative:
            self._scaling = RELATIVE
        self._crop = _size(crop_size, self.is_planar, "crop_size", least=0)
        # one for all images: it says once that some are padded
        self._cropping = CenterCropOrPadd("image", self._crop) if self._crop is not None else None
        self._resize = _size(image_size, self.is_planar, "image_size")
        self.channels = channels or _agreed(
            self.folder, colours, "number of channels", "Pass --channels 1 or 3 to convert them"
        )
        self.size = self._common_size(shapes)
        self.stored_spacing = None if self.is_planar else _medians(spacings)
        self.spacing = None if self.is_planar else self._final_spacing(shapes, spacings)
        self.protocol: dict[str, Any] = {
            "reader": READER,
            "intensity": asdict(self._scaling),
            "crop_size": self._crop,
            "image_size": self.size,
            "channels": self.channels,
            "orientation": "as stored" if self.is_planar else "RAS",
        }
        self.files = files
        self.constant: list[str] = []
        self.class_names: tuple[str, ...] = ()
        self.labels: list[int] = []
        self._labelled, self._cache_dir = labels is not None, Path(cache_dir) if cache_dir is not None else None
        if check_voxels:
            self.check_voxels()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        """Image ``index`` as float32 (C, H, W, D) in [-1, 1]; a list of them for a slice."""
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        return self._read(self.files[index])

    def __iter__(self) -> Iterator[Tensor]:
        return (self._read(file) for file in self.files)

    @cached_property
    def keys(self) -> list[str]:
        """Hash of each image's values as read: equal for one image in two files, even of two lossless formats."""
        return [values_hash(image) for image in self]

    @property
    def names(self) -> list[str]:
        """Path of each image within the folder."""
        return [self._name(file) for file in self.files]

    @property
    def duplicates(self) -> int:
        """How many images are byte by byte another one of the set."""
        return len(self.keys) - len(set(self.keys))

    def _name(self, file: VolumeFile) -> str:
        inside = file.path.is_relative_to(self.folder)
        return file.path.relative_to(self.folder).as_posix() if inside else str(file.path)

    def _key(self, file: VolumeFile) -> str:
        return content_hash({"file": content_mark(file.path, file.series_uid), "protocol": self.protocol})

    def _headers(
        self, files: Sequence[VolumeFile]
    ) -> tuple[list[VolumeFile], list[tuple[int, int, int]], list[int], list[tuple[float, ...]]]:
        """Files with a sound header, their shapes, channels and voxel sizes."""
        sound, shapes, colours, spacings = [], [], [], []
        for file in files:
            try:
                header = read_header(file.path, file.series_uid)
                shape, spacing = _grid_as_read(file, header)
            except UserError as error:
                self.unreadable.append(Fault.from_error(file.path, error))
                continue
            sound.append(file)
            shapes.append(shape)
            colours.append(header.channels)
            spacings.append(spacing)
        if not sound:
            raise self._nothing()
        return sound, shapes, colours, spacings

    def _nothing(self) -> UserError:
        first = f", the first {self.unreadable[0]}" if self.unreadable else ""
        return UserError("a set must hold a readable image", f"{self.folder} with {len(self.unreadable)} faults{first}")

    def _common_size(self, shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
        if self._resize is not None:
            return self._resize
        crop = self._crop or (0, 0, 0)
        sizes = [tuple(c or n for c, n in zip(crop, shape, strict=True)) for shape in shapes]
        remedy = "Pass --image_size to resize them, or --crop_size to crop and pad them"
        return per_axis(_agreed(self.folder, sizes, "size", remedy), "image_size")

    def _final_spacing(
        self, shapes: Sequence[tuple[int, int, int]], spacings: Sequence[tuple[float, ...]]
    ) -> tuple[float, ...]:
        crop = np.array(self._crop or (0, 0, 0))
        extents = np.where(crop > 0, crop, np.array(shapes)) * np.array(spacings)
        return _medians(extents / np.array(self.size))

    def check_voxels(self) -> None:
        """Read every file once; keep those that can be read, note the constant ones and the range of stored values.

        Raises:
            UserError: no file can be read, stored values of several ranges, or images without labels.
        """
        record = self._cache_dir / "read_files.json" if self._cache_dir is not None else None
        known = _observed_before(record)
        before, kept, keys, stored = len(known), [], [], []
        for file in tqdm(self.files, f"Reading {self.folder.name}", unit="image", leave=False):
            try:
                key = self._key(file)
                if key not in known:
                    known[key] = self._observed(file)
            except (UserError, OSError) as error:
                fault = Fault(file.path, "a file must be readable", str(error), "Replace or remove the file")
                self.unreadable.append(Fault.from_error(file.path, error) if isinstance(error, UserError) else fault)
                continue
            kept.append(file)
            keys.append(known[key]["content"])
            if known[key]["constant"]:
                self.constant.append(self._name(file))
            stored.append(known[key]["stored"])
        if not kept:
            raise self._nothing()
        self.files, self.keys = kept, keys
        if self._scaling.mode == "stored":
            check_one_map(self.folder, stored)
        if record is not None and len(known) > before:
            write_json(record, known)
        if self._labelled:
            self.class_names, self.labels = resolve_classes(self.files)

    def _observed(self, file: VolumeFile) -> dict[str, Any]:
        """What is worth knowing of an image without reading it again; ``content`` hashes its values as read."""
        volume = self._loaded(file)
        image = self._prepared(volume, file)
        limits = [*volume.meta.get(STORED_RANGE, (None, None)), float(volume.max())]
        return {
            "constant": bool(image.max() == image.min()),
            "content": values_hash(image),
            "stored": limits,
        }

    def _read(self, file: VolumeFile) -> Tensor:
        return self._prepared(self._loaded(file), file)

    def _loaded(self, file: VolumeFile) -> MetaTensor:
        volume = load_volume(file.path, file.series_uid, True, self._channels, self._channels is not None)
        image = MetaTensor(volume.movedim(-1, 0) if volume.ndim == 4 else volume[None], meta=volume.meta)
        if not torch.isfinite(image).all():
            raise UserError("voxels must be finite", str(file.path), "Replace NaN and infinite values, or remove it")
        return image

    def _prepared(self, image: MetaTensor, file: VolumeFile) -> Tensor:
        if not self.is_planar:
            image = Orientation(axcodes="RAS", labels=None)(image)
        image = scaled(image, self._scaling)
        if self._cropping is not None:
            image = self._cropping({"image": image})["image"]
        if self._resize is not None:
            image = resize_volume(image, self._resize)
        if tuple(image.shape[1:]) != self.size:
            raise UserError(f"images must have the size {self.size}", f"{file.path} of {tuple(image.shape[1:])}")
        return image.as_tensor().contiguous()


def _observed_before(record: Path | None) -> dict[str, Any]:
    """What was kept of files that were read; nothing where the record is missing or damaged."""
    try:
        found = {} if record is None else json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict) and set(entry) == set(OBSERVED)}


def values_hash(image: Tensor) -> str:
    """SHA-256 of an image's shape and its values in float32, in hexadecimal."""
    values = torch.as_tensor(image).float().contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()


def check_alike(sets: Sequence[ImageSet]) -> None:
    """All sets must be read alike: 2D or 3D, one size, as many channels, one intensity map.

    Relative samples are alike to volumes with a map of their own: that map made the images that their generator saw.

    Raises:
        UserError: they differ.
    """
    first = sets[0]
    for other in sets[1:]:
        shown = f"{first.folder} and {other.folder}"
        if first.is_planar != other.is_planar:
            kinds = ("2D", "3D") if first.is_planar else ("3D", "2D")
            raise UserError("2D images can not be compared with 3D volumes", f"{shown}: {kinds[0]} and {kinds[1]}")
        if first.size != other.size:
            remedy = "Pass --image_size to resize both, or --crop_size to crop and pad both"
            raise UserError("the sets must have images of one size", f"{shown}: {first.size} and {other.size}", remedy)
        if first.channels != other.channels:
            received = f"{shown}: {first.channels} and {other.channels}"
            raise UserError("the sets must have as many channels", received, "Pass --channels 1 or 3 to convert them")
    for first, other in itertools.combinations(sets, 2):
        if not _one_map(first, other):
            shown = f"{first.folder} and {other.folder}"
            raise UserError("the sets must have one intensity map", shown, "Pass the same --intensity and --window")


def _one_map(first: ImageSet, other: ImageSet) -> bool:
    modes = {images.protocol["intensity"]["mode"] for images in (first, other) if not images.is_relative}
    if first.is_relative != other.is_relative:
        return modes <= set(OWN_MAPS)
    return bool(first.protocol["intensity"] == other.protocol["intensity"])


def _medians(spacings: Any) -> tuple[float, ...]:
    return tuple(float(length) for length in np.median(spacings, axis=0))


def _grid_as_read(file: VolumeFile, header: VolumeHeader) -> tuple[tuple[int, int, int], tuple[float, ...]]:
    """Shape and voxel size once axes run right, front and up; rows and columns of a flat image as looked at."""
    shape = header.spatial_shape
    if shape[2] == 1 and file.path.suffix.lower() not in PILLOW_SUFFIXES + ARRAY_SUFFIXES:
        rows, columns = read_image(file.path, file.series_uid).pixels.shape[:2]  # volume formats store columns first
        return (rows, columns, 1), header.spacing
    if shape[2] == 1 or not np.isfinite(header.affine).all():
        return shape, header.spacing
    axes = nibabel.io_orientation(header.affine)[:, 0]
    if np.isnan(axes).any():
        return shape, header.spacing
    order = np.argsort(axes)
    return per_axis([shape[n] for n in order], "shape"), tuple(header.spacing[n] for n in order)


def _size(value: Any, is_planar: bool, name: str, least: int = 1) -> tuple[int, int, int] | None:
    if value is None:
        return None
    sizes = [value] * (2 if is_planar else 3) if isinstance(value, int) else list(value)
    sizes = sizes * (2 if is_planar else 3) if len(sizes) == 1 else sizes
    sizes = [*sizes, 1] if is_planar and len(sizes) == 2 else sizes
    if len(sizes) != 3 or any(int(n) != n or n < least for n in sizes) or (is_planar and sizes[2] not in (1, least)):
        wanted = "one or two whole numbers (H, W)" if is_planar else "one or three whole numbers (H, W, D)"
        raise UserError(f"--{name} must be {wanted} here", value)
    return (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def _agreed(folder: Path, values: Sequence[Any], what: str, remedy: str) -> Any:
    counts = Counter(values).most_common()
    if len(counts) > 1:
        listed = ", ".join(f"{count} of {value}" for value, count in counts[:5])
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        raise UserError(f"images of a set must have one {what}", f"{folder}: {listed}{more}", remedy)
    return counts[0][0]
