"""Segmenting what a folder or a file holds: label maps beside one listing, written ones are skipped, a picture."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.engines import Evaluator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.segmentation.overlay import class_planes
from medical_diffusion.bundle.segmentation.segmenter import Segmentation, Segmenter
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.data import Fault, find_volumes, load_volume, read_header
from medical_diffusion.data.checks import raise_faults
from medical_diffusion.data.listing.exposure import content_mark
from medical_diffusion.data.reading.formats import is_flat_format, kind_of, stem_of, supported
from medical_diffusion.errors import UserError, find_user_error
from medical_diffusion.files import check_writable, file_hash, write_atomically, write_json
from medical_diffusion.pictures import tile_grid, write_png

logger = logging.getLogger(__name__)

LISTING = "segmentations.json"
SHOWN = 5


class SegmentationWriter:
    """Label maps in a folder: ``<path of the image>.nii.gz`` on its grid, or ``.png`` for an image without one.

    Args:
        output_dir: folder of the maps.
        weights: file of the network, whose hash the listing keeps, beside the content mark of each map's image.
        class_values: number in the maps by name, in the order of the channels.

    Raises:
        UserError: the folder holds maps of other weights or classes, or can not be written.
    """

    def __init__(self, output_dir: str | Path, weights: Path, class_values: Mapping[str, int]) -> None:
        self.output_dir = check_writable(output_dir)
        self.class_values = dict(class_values)
        listing = self.output_dir / LISTING
        self._listing: dict[str, Any] = {"weights_sha256": file_hash(weights), "classes": self.class_values}
        found = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else dict(self._listing)
        self._marks: dict[str, str] = found.pop("images", {})
        if found != self._listing:
            raise UserError(
                "segmentations that are there already must have been made with the same weights and classes",
                f"{listing} with {found}",
                "Choose another --output_dir, or delete the old ones",
            )
        self._write_listing()

    def path_of(self, item: Mapping[str, Any]) -> Path:
        """Where the map of an item of :func:`images_to_segment` goes."""
        flat = is_flat_format(item["image"]) and not str(item["image"]).lower().endswith(".npy")
        return self.output_dir / f"{item['name']}{'.png' if flat else '.nii.gz'}"

    def is_written(self, item: Mapping[str, Any]) -> bool:
        """Whether the map of this very image is there."""
        return self.path_of(item).is_file() and self._marks.get(self._name_of(item)) == _mark(item)

    def check_free(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Whether every item's place is empty or holds its own map.

        Raises:
            UserError: maps of other images, or files that no run has listed, lie there: nothing is overwritten.
        """
        taken = [str(self.path_of(i)) for i in items if self.path_of(i).exists() and not self.is_written(i)]
        if taken:
            more = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
            raise UserError(
                "label maps that are there already must be of the same images",
                f"{', '.join(taken[:SHOWN])}{more}: of other images with these names, or of unknown ones",
                "Choose another --output_dir, or delete these",
            )

    def write(self, item: Mapping[str, Any], segmentation: Segmentation) -> Path:
        """Write a map with the values that the label maps of training had."""
        self._marks[self._name_of(item)] = _mark(item)
        self._write_listing()  # first: a mark without a map is harmless
        values = np.array([0, *self.class_values.values()])
        maps = values[segmentation.channels]
        stored = maps.astype(np.uint8 if values.min() >= 0 and values.max() <= 255 else np.int32)
        path = self.path_of(item)
        if path.suffix == ".png":
            return write_png(path, stored[:, :, 0])
        stored, affine = _as_filed(item, stored, segmentation.affine)
        nifti = nibabel.Nifti1Image(stored, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(affine, code=1)
        nifti.set_qform(affine, code=1)
        return write_atomically(path, lambda part: nibabel.save(nifti, part))

    def read(self, item: Mapping[str, Any]) -> np.ndarray:
        """A written map as channel numbers (H, W, D)."""
        stored = np.asarray(load_volume(self.path_of(item), allow_planar=True, channels=1))
        channels = np.zeros(stored.shape, dtype=np.uint8)
        for channel, value in enumerate(self.class_values.values(), start=1):
            channels[stored == value] = channel
        return channels

    def _name_of(self, item: Mapping[str, Any]) -> str:
        return self.path_of(item).relative_to(self.output_dir).as_posix()

    def _write_listing(self) -> None:
        write_json(self.output_dir / LISTING, {**self._listing, "images": self._marks})


def _mark(item: Mapping[str, Any]) -> str:
    return content_mark(Path(item["image"]), item.get("series_uid"))


def _as_filed(item: Mapping[str, Any], stored: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map in the index order of its image's file: an image of depth 1 is read as it is looked at, rows down."""
    header = read_header(item["image"], item.get("series_uid"))
    if stored.shape[2] > 1 or header.spatial_shape[2] > 1 or np.allclose(header.affine, affine):
        return stored, affine
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.io_orientation(header.affine)
    )
    return nibabel.orientations.apply_orientation(stored, turn), header.affine


def images_to_segment(
    source: str | Path, planar: bool = False, output_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Items ``{"image": path, "name": relative path without its suffix}`` of a folder or of one file.

    Label folders beside images are left out, and ``output_dir`` where it lies in the folder.

    Raises:
        UserError: nothing there that can be read; ``output_dir`` is the folder itself.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if kind_of(path, planar) is None:
            raise UserError("a file to segment must be an image", str(path), f"Supported: {supported(planar)}")
        return [{"image": str(path), "name": stem_of(path)}]
    output = Path(output_dir).resolve() if output_dir is not None else None
    if output == path.resolve():
        raise UserError("label maps need a folder of their own", str(path), "Choose another --output_dir")
    inside = output is not None and output.is_relative_to(path.resolve())
    items = []
    for volume in find_volumes(path, planar=planar):
        if inside and output is not None and volume.path.resolve().is_relative_to(output):
            continue
        relative = volume.path.relative_to(path)
        # the folder itself may be a series
        name = relative.with_name(stem_of(volume.path)).as_posix() if relative.parts else volume.path.resolve().name
        item = {"image": str(volume.path), "name": name}
        items.append({**item, "series_uid": volume.series_uid} if volume.series_uid else item)
    return items


def _refuse_one_name(items: Sequence[Mapping[str, Any]], writer: SegmentationWriter) -> None:
    first: dict[Path, str] = {}
    for item in items:
        other = first.setdefault(writer.path_of(item), item["image"])
        if other != item["image"]:
            raise UserError(
                "images must have different names, by which their label maps are called",
                f"{other} and {item['image']}",
                "Rename one of them, or segment them into different folders",
            )


class ImagesToSegment:
    """The images that a run still has to segment, found at first use.

    Args:
        source: folder or file; None takes ``fallback``.
        planar: images instead of volumes.
        writer: knows what is written.
        fallback: items of the test part of phantoms.
    """

    def __init__(
        self,
        source: str | None,
        planar: bool,
        writer: SegmentationWriter,
        fallback: Any = None,
    ) -> None:
        self.source, self.planar, self.writer, self.fallback = source, planar, writer, fallback

    @cached_property
    def all(self) -> list[dict[str, Any]]:
        """All of them, those that are segmented included.

        Raises:
            UserError: nothing there that can be read, two whose maps would have one name, or a map of another image
                in the place of one.
        """
        if self.source is not None:
            items = images_to_segment(self.source, self.planar, self.writer.output_dir)
            _refuse_one_name(items, self.writer)
        else:
            lists = self.fallback.lists
            items = [{"image": i["image"], "name": i["subject"]} for i in (lists.test or lists.validation)]
        self.writer.check_free(items)
        return items

    @cached_property
    def missing(self) -> list[dict[str, Any]]:
        return [item for item in self.all if not self.writer.is_written(item)]

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.missing[index]


class SegmentationEvaluator(Evaluator):
    """MONAI engine that segments and writes one image after the other; the images that fail are listed at the end.

    Args:
        device: where to compute.
        val_data_loader: loader of :class:`ImagesToSegment`, one at a time.
        segmenter: makes the maps.
        writer: writes each at once, so that an interrupted run continues.
        val_handlers: MONAI or ignite handlers.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: DataLoader,
        segmenter: Segmenter,
        writer: SegmentationWriter,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device), val_data_loader=val_data_loader, decollate=False, val_handlers=val_handlers
        )
        self.segmenter, self.writer = segmenter, writer
        self.faults: list[Fault] = []

    @property
    def network(self) -> nn.Module:
        return self.segmenter.network

    def run(self, global_epoch: int = 1) -> None:
        """Segment every image of the loader; does nothing when all are written.

        Raises:
            UserError: images that could not be segmented, all listed; the others are written.
        """
        total = len(self.data_loader.dataset)
        if total == 0:
            return
        self.network.to(self.state.device)
        with tqdm(total=total, desc="segmenting", unit="image") as self._bar:
            super().run(global_epoch)
        raise_faults(self.faults, "every image must be usable", "The others are written; correct these or remove them")

    def _iteration(self, engine: Any, batchdata: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        item = {key: values[0] for key, values in batchdata.items()}
        try:
            self.writer.write(item, self.segmenter(item))
        except Exception as error:  # MONAI wraps what a transform raises
            user_error = find_user_error(error)
            if user_error is None:
                raise
            self.faults.append(Fault.from_error(Path(item["image"]), user_error))
        self._bar.update(1)
        return item


def segmentations_folder(settings: Settings, folders: Folders) -> Path:
    """Folder of the label maps, by default ``segmentations`` in the run's."""
    return check_writable(settings.output_dir or folders.root / "segmentations")


def write_segmentation_preview(settings: Settings, images: ImagesToSegment, writer: SegmentationWriter) -> Path:
    """``preview.png``: the first images with their classes in colour, in three planes."""
    shown = [item for item in images.all if writer.is_written(item)][: settings.num_previews]
    columns = []
    for item in shown:
        volume = load_volume(item["image"], item.get("series_uid"), allow_planar=True)
        affine = np.asarray(volume.affine)
        columns.append(class_planes(np.asarray(volume), writer.read(item), affine))
    path = writer.output_dir / "preview.png"
    if columns:
        write_png(path, tile_grid([(f"segmented: {', '.join(writer.class_values)}", columns)]))
    logger.info("written: %d segmentations in %s", len(images.all), writer.output_dir)
    return path
