"""The volumes of a run: the user's folder, checked by its headers, or phantoms made on the spot."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, EnsureType

from medical_diffusion.bundle.context import config_item
from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.options import NONE_WORDS
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.data import (
    DataList,
    HistogramStandardized,
    both_halves,
    build_datalist,
    fit_landmarks,
    load_manifest,
    verify_dataset,
)
from medical_diffusion.data.listing.exposure import training_marks
from medical_diffusion.data.phantoms import PHANTOM_LABELS, write_phantoms
from medical_diffusion.data.phantoms.registry import phantom_kind
from medical_diffusion.data.reading.flat_image import STORED_RANGE
from medical_diffusion.errors import UserError
from medical_diffusion.files import content_hash, write_json
from medical_diffusion.training.distributed import barrier, is_main_process

logger = logging.getLogger(__name__)

CACHED_CONFIGS = ("preprocessing", "intensity_scaling")
LARGEST_BYTE = 255
DARK = -0.5


class TrainingData:
    """Lists of volumes for training and validation, found at first use.

    Args:
        settings: of the run.
        folders: where phantoms and caches go.
        kind: of the phantoms.
        preprocessing: MONAI transforms from a path to a volume in [-1, 1].
    """

    def __init__(self, settings: Settings, folders: Folders, kind: str, preprocessing: Sequence[Any]) -> None:
        self.settings, self.folders, self.kind = settings, folders, kind
        self.preprocessing = list(preprocessing)

    @cached_property
    def root(self) -> Path:
        """Folder of the volumes; phantoms are written here when there is no ``dataset_dir``."""
        s = self.settings
        if s.dataset_dir is None and s.profile != "phantom":
            raise UserError(
                "weights that were trained on real volumes are evaluated on real volumes",
                "no dataset_dir",
                "Pass the folder that they were trained on: --dataset_dir DIR",
            )
        if s.dataset_dir is None:
            height, *others = s.image_size
            size = [2 * height if s.get("halves") else height, *others]  # both halves lie along the first axis
            return write_phantoms(
                kind=self.kind, output_dir=self.folders.phantoms, count=s.num_phantoms, image_size=size
            )
        self._warn_of_another_bundle()
        verify_dataset(
            s.dataset_dir,
            **self._listing(),
            channels=s.channels,
            convert_channels=s.convert_channels,
            headers_only=True,
        ).raise_if_faulty()
        return Path(s.dataset_dir)

    def _warn_of_another_bundle(self) -> None:
        """A manifest of another bundle names other images than this one's preprocessing is made for."""
        if self.settings.manifest is None:
            return
        manifest = load_manifest(self.settings.manifest)
        kind, bundle = manifest.fields.get("phantoms", self.kind), manifest.fields.get("bundle", "another bundle")
        if kind != self.kind:
            logger.warning(
                "Manifest %s is meant for %s, of %s; this one is of %s", manifest.name, bundle, kind, self.kind
            )

    def _listing(self) -> dict[str, Any]:
        """How files, classes and subjects are found, for the functions that search a data set."""
        s = self.settings
        return {
            "manifest": s.manifest,
            "datalist": s.datalist,
            "class_folders": s.get("class_folders", False),
            "classes": s.get("classes"),
            "image_column": s.image_column,
            "label_column": s.get("label_column"),
            "subject_column": s.subject_column,
            "planar": s.planar,
        }

    @cached_property
    def lists(self) -> DataList:
        s = self.settings
        listing = self._listing()
        if s.dataset_dir is None and (classes := phantom_kind(self.kind).classes):
            listing |= {"datalist": self.root / PHANTOM_LABELS, "classes": classes}
        lists = build_datalist(
            self.root, **listing, validation_fraction=s.validation_fraction, test_fraction=s.test_fraction
        )
        return both_halves(lists) if s.get("halves") else lists

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of their labels; empty for data without labels. Phantoms need not be made for it."""
        if self.settings.dataset_dir is None and self.settings.profile == "phantom":
            return phantom_kind(self.kind).classes
        return self.lists.classes

    @cached_property
    def class_frequencies(self) -> list[float]:
        """Share of each class in the training split; nothing before the phantoms are made."""
        counts = np.bincount(self.labels_of(self.train) or [0], minlength=len(self.class_names))
        return (counts / counts.sum()).round(6).tolist() if self.class_names else []

    def labels_of(self, items: Sequence[dict[str, Any]]) -> list[int] | None:
        """Class of each list item; None for data without labels."""
        return [item["class_label"] for item in items] if self.class_names else None

    @property
    def is_dark(self) -> bool:
        """Whether the first image uses less than a quarter of the range that its type could hold."""
        return self.settings.intensity == "stored" and float(self._first_image.max()) < DARK

    def prepare(self) -> None:
        """Find and check the volumes now, or make the phantoms: before any long work. Drops caches of other data."""
        if is_main_process():
            reserved = sorted(name for name in self.class_names if name.strip().lower() in NONE_WORDS)
            if reserved:
                raise UserError(
                    "a class needs a name other than none and null, which mean that nothing is asked for",
                    reserved[0],
                    "Rename it in the list or folder, for example to healthy",
                )
            _ = self.lists
            for stale in set(self.folders.cache.glob("volumes_*")) - {self.cache_dir}:
                shutil.rmtree(stale, ignore_errors=True)
            for old in set(self.folders.cache.glob("landmarks_*.json")) - {self.landmarks_path}:
                old.unlink()
        barrier()
        _ = self.lists

    @property
    def train(self) -> list[dict[str, Any]]:
        return self.lists.train

    @property
    def validation(self) -> list[dict[str, Any]]:
        return self.lists.validation

    @property
    def transform(self) -> Compose:
        """Preprocessing that ends in plain tensors, for caching and batching."""
        return Compose([*self._chain, _PlainImage()])

    @cached_property
    def landmarks(self) -> list[float] | None:
        """Histogram landmarks: those that the weights were trained with in an evaluation, else fitted once on the
        training split and kept beside the caches; None without histogram standardisation."""
        position = self._histogram_position
        if position is None:
            return None
        if self.settings.trained:
            return self.settings.trained.get("landmarks")
        if not self.landmarks_path.is_file():
            before = Compose(self.preprocessing[:position])
            volumes = (before(dict(item))["image"] for item in self.train)
            write_json(self.landmarks_path, fit_landmarks(volumes, total=len(self.train)))
        return json.loads(self.landmarks_path.read_text(encoding="utf-8"))

    @property
    def landmarks_path(self) -> Path:
        """File of the fitted landmarks."""
        return self.folders.cache / f"landmarks_{self._source_key[:24]}.json"

    @property
    def _histogram_position(self) -> int | None:
        steps = enumerate(self.preprocessing)
        return next((n for n, step in steps if isinstance(step, HistogramStandardized)), None)

    @cached_property
    def _chain(self) -> list[Any]:
        """The preprocessing with the landmarks in place."""
        if self._histogram_position is not None:
            self.preprocessing[self._histogram_position].landmarks = self.landmarks
        return self.preprocessing

    @cached_property
    def _source_key(self) -> str:
        """Hash of data, preprocessing and the settings that shape them."""
        configs = [config_item(name) for name in CACHED_CONFIGS]
        return content_hash([self.lists.fingerprint, self.settings.of_stage("data"), configs])

    @cached_property
    def key(self) -> str:
        """Name of caches: as above, with the numbers that preprocessing learnt from the training split."""
        return self._source_key if self.landmarks is None else content_hash([self._source_key, self.landmarks])

    @property
    def cache_dir(self) -> Path:
        """Folder of the preprocessed volumes, one per :attr:`key`."""
        return self.folders.cache / f"volumes_{self.key[:24]}"

    @cached_property
    def _first_image(self) -> Any:
        return Compose(self._chain)(dict(self.train[0]))["image"]

    @property
    def output_spacing(self) -> list[float]:
        """Millimetres per voxel after preprocessing, of the first training volume."""
        return [round(float(v), 6) for v in self._first_image.pixdim]

    @property
    def png_bits(self) -> int | None:
        """Bits of the PNG files that samples become: 8, or 16 where the images hold more; None for volumes."""
        if not self.settings.planar:
            return None
        low, high = self._first_image.meta.get(STORED_RANGE, (0, LARGEST_BYTE))
        return 8 if 1 < high - low <= LARGEST_BYTE else 16

    @property
    def trained_on(self) -> list[str]:
        """Hashes by which an evaluation knows the training subjects and images again; phantoms are nobody."""
        return training_marks(self.lists.train) if self.settings.dataset_dir is not None else []

    def stored_settings(self) -> dict[str, Any]:
        """What goes into the checkpoints: the settings, whom they saw, and what samples are to be like."""
        return {
            **self.settings.stored(),
            "output_spacing": self.output_spacing,
            "png_bits": self.png_bits,
            "landmarks": self.landmarks,
            "split": self.lists.fingerprint,
            "trained_on": self.trained_on,
            "class_names": list(self.class_names),
            "class_frequencies": self.class_frequencies,
        }

    def fingerprint(self, stage: str, *extra: Any) -> str:
        """Hash of all that shapes the result of ``stage`` except the number of steps."""
        ids = {"autoencoder": _AUTOENCODER_IDS, "diffusion": _DIFFUSION_IDS}[stage]
        configs = [_trainable_config(config_item(name)) for name in ids]
        if stage == "diffusion":  # stage 1 and the caches know nothing of classes
            configs.append(self.lists.classes_fingerprint)
        return content_hash([self.key, self.settings.of_stage(stage), self.settings.seed, configs, list(extra)])


_AUTOENCODER_IDS = ("autoencoder_def", "vector_quantizer", "gaussian_bottleneck", "autoencoder")
_DIFFUSION_IDS = ("network_def", "noise_scheduler", "train")
_NOT_SHAPING = ("handlers", "trainer", "logs", "dataloader")


def _trainable_config(config: Any) -> Any:
    """A stage's configuration without its handlers, engine and loader."""
    return {k: v for k, v in config.items() if k not in _NOT_SHAPING} if isinstance(config, dict) else config


class _PlainImage:
    """Keeps the image alone, as a contiguous float tensor without metadata."""

    def __init__(self) -> None:
        self.to_tensor = EnsureType(dtype=torch.float32, track_meta=False)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        image = self.to_tensor(item["image"])
        if not bool(torch.isfinite(image).all()):
            raise UserError("volumes must hold finite values after preprocessing", str(item.get("subject")))
        return {"image": image.contiguous()}


def load_volumes(data: TrainingData, items: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Preprocessed volumes (C, H, W, D) in [-1, 1] of list items."""
    return [data.transform(dict(item))["image"] for item in items]
