"""A run's samples measured against its own images: a report on fidelity, diversity, copies and utility.

Real images go through the run's own preprocessing and samples are read back to what the network made, so that both are
compared as the networks saw them. Held out are the images of validation and of the final test: none was trained on.
Keys of all images are hashes of the voxels as the networks saw them, so that an image in two parts of the split, or
among the samples, is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import torch
from torch import Tensor
from tqdm import tqdm

from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.bundle.training_data import TrainingData
from medical_diffusion.data.image_set import ImageSet, values_hash
from medical_diffusion.data.listing.image_folders import SIDECARS
from medical_diffusion.data.volume_cache import SafePersistentDataset
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.features import create_extractor
from medical_diffusion.evaluation.report import Labels, measure, write_report
from medical_diffusion.evaluation.report.tables import table
from medical_diffusion.synthesis import intensity_of_samples
from medical_diffusion.training.distributed import is_main_process

logger = logging.getLogger(__name__)

GENERATOR = "samples"


class RunImages(Sequence[Tensor]):
    """Preprocessed images (C, H, W, D) in [-1, 1] of list items, cached where training caches them.

    Args:
        data: of the run.
        items: of its lists.
        name: for the progress bar.
    """

    def __init__(self, data: TrainingData, items: Sequence[dict[str, Any]], name: str) -> None:
        self.dataset = SafePersistentDataset(list(items), data.transform, cache_dir=data.cache_dir)
        self.name = name
        self.names = [str(item["image"]) for item in items]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return torch.as_tensor(self.dataset[index]["image"])

    @cached_property
    def keys(self) -> list[str]:
        """Hash of each image's voxels."""
        return _keys(self, self.name)


class Samples(Sequence[Tensor]):
    """Written samples along the axes of the run's orientation.

    Args:
        images: as read, volumes along right, front and top.
        orientation: of the run; not used for images (depth 1).
    """

    def __init__(self, images: ImageSet, orientation: str) -> None:
        self.images = images
        self.names = images.names
        axes = nibabel.orientations.axcodes2ornt(orientation).astype(int).tolist()
        self._axes = [0, *(1 + axis for axis, _ in axes)]
        self._flips = [n for n, (_, sign) in enumerate(axes, start=1) if sign < 0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        image = self.images[index]
        return image if self.images.is_planar else image.permute(self._axes).flip(self._flips).contiguous()

    @cached_property
    def keys(self) -> list[str]:
        """Hash of each sample's voxels along the axes of the run."""
        return _keys(self, "written")


def _keys(images: Sequence[Tensor], name: str) -> list[str]:
    return [values_hash(image) for image in tqdm(images, f"Reading {name} images", unit="image", leave=False)]


class SampleEvaluation:
    """Writes ``reports/samples/report.html`` and what belongs to it.

    Args:
        settings: of the run; ``samples_dir`` and ``features`` say what is measured and with what.
        data: of the run.
        folders: of the run.
        device: of the extractor of features.
    """

    def __init__(self, settings: Settings, data: TrainingData, folders: Folders, device: torch.device) -> None:
        self.settings, self.data, self.folders, self.device = settings, data, folders, device

    @cached_property
    def samples(self) -> ImageSet:
        """The samples as they were written.

        Raises:
            UserError: no folder, nothing readable, 2D for 3D, mixed sizes.
        """
        s, folder = self.settings, Path(self.settings.samples_dir)
        labelled = self.data.class_names and any(folder.glob("*.json"))
        intensity, window = intensity_of_samples(s.planar, s.intensity, s.window)
        return ImageSet(
            folder,
            intensity,
            window,
            channels=s.channels,
            labels=SIDECARS if labelled else None,
            planar=s.planar,
            cache_dir=self.folders.cache,
            option="--samples_dir",
        )

    def check(self) -> None:
        """Read the samples and the extractor now, before any long work.

        Raises:
            UserError: as :attr:`samples`; samples of another size than the run's; an extractor that is not obtainable.
        """
        size, wanted = tuple(self._samples[0].shape[1:]), tuple(self.settings.image_size)
        if size != wanted:
            raise UserError(f"samples of this run must have its size {wanted}", f"{size} in {self.samples.folder}")
        for fault in self.samples.unreadable:
            logger.warning("left out: %s", fault)
        if ignored := self.samples.ignored:
            logger.warning("not counted: %d files of %s, the first %s", len(ignored), self.samples.folder, ignored[0])
        _ = self._extractor
        logger.info("Measuring %d samples of %s.", len(self.samples), self.samples.folder)

    def run(self) -> dict[str, Any] | None:
        """Measure and write; returns the content of ``report.json``."""
        if not is_main_process():
            return None
        lists = self.data.lists
        held_out = RunImages(self.data, [*lists.validation, *lists.test], "held-out")
        train = RunImages(self.data, lists.train, "training")
        labels, reason = self._labels()
        measurement = measure(
            held_out,
            {GENERATOR: self._samples},
            self._extractor,
            train,
            {"real": self.settings.of_stage("data"), GENERATOR: self.samples.protocol},
            self.folders.cache,
            self.settings.seed,
            self.device,
            logger.info,
            labels,
        )
        report = measurement.report
        if reason:
            report["utility"] = {"reason": reason}
        report["folders"] = {"real": self.settings.dataset_dir or "phantoms", GENERATOR: str(self.samples.folder)}
        report["unreadable"] = {GENERATOR: [str(fault) for fault in self.samples.unreadable]}
        report["ignored"] = {GENERATOR: [str(left) for left in self.samples.ignored]}
        report["constant"] = {GENERATOR: self.samples.constant}
        report["duplicates"] = {GENERATOR: self.samples.duplicates}
        path = write_report(self.folders.reports / "samples", measurement, held_out, {GENERATOR: self._samples}, train)
        for row in table(report):
            logger.info("  %s", "   ".join(row))
        logger.info("  %s", report["generators"][GENERATOR]["verdict"])
        logger.info("  written to %s", path)
        return report

    @cached_property
    def _samples(self) -> Samples:
        return Samples(self.samples, self.settings.orientation)

    @cached_property
    def _extractor(self) -> Any:
        s = self.settings
        return create_extractor(s.features, 2 if s.planar else 3, s.channels)

    def _labels(self) -> tuple[Labels | None, str]:
        """Classes of all images where they can be used; else why not."""
        names, lists = self.data.class_names, self.data.lists
        if not names:
            return None, "the images have no classes"
        if not self.samples.labels:
            return None, "the samples do not say their classes"
        of = {
            "real": [names[n] for n in self.data.labels_of([*lists.validation, *lists.test]) or []],
            "train": [names[n] for n in self.data.labels_of(lists.train) or []],
            GENERATOR: [self.samples.class_names[n] for n in self.samples.labels],
        }
        labels = Labels(of)
        try:
            labels.check()
        except UserError as error:
            return None, str(error)
        return labels, ""
