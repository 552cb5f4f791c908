"""The labelled volumes of a run: the user's, checked before any work, or phantoms with their masks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, EnsureTyped, Transform
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from medical_diffusion.bundle.context import config_item
from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.options import NONE_WORDS
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.bundle.weights import Weights
from medical_diffusion.data import (
    EncodeLabelsd,
    Fault,
    LabelledList,
    SafePersistentDataset,
    SampleForegroundd,
    build_labelled_list,
    flip_axes,
)
from medical_diffusion.data.checks import raise_faults
from medical_diffusion.data.listing.exposure import subject_mark, training_marks
from medical_diffusion.data.phantoms import write_phantoms
from medical_diffusion.errors import UserError, find_user_error
from medical_diffusion.files import content_hash, file_hash, load_tensors
from medical_diffusion.training.distributed import barrier, is_main_process

logger = logging.getLogger(__name__)

CACHED_CONFIGS = ("preprocessing", "intensity_scaling")
TRAINED_CONFIGS = ("network_def", "train")
NOT_SHAPING = ("handlers", "trainer", "logs", "dataloader", "evaluator", "checkpoint", "validation_dataset")
INHERITED = ("feature_size", "window_size")
"""Options that take the value of the pre-trained network."""


class SegmentationData:
    """Lists of labelled volumes, found at first use.

    Args:
        settings: of the run.
        folders: where phantoms and caches go.
        kind: of the phantoms.
        preprocessing: MONAI transforms from paths under ``image`` and ``label`` to volumes on one grid, the image in
            [-1, 1].
    """

    def __init__(self, settings: Settings, folders: Folders, kind: str, preprocessing: Sequence[Any]) -> None:
        self.settings, self.folders, self.kind = settings, folders, kind
        self.preprocessing = list(preprocessing)

    @cached_property
    def root(self) -> Path:
        """Folder of the volumes; phantoms are written here when there is no ``dataset_dir``."""
        s = self.settings
        if s.dataset_dir is not None:
            return Path(s.dataset_dir)
        if s.profile != "phantom":
            raise UserError(
                "weights that were trained on real volumes are evaluated on real volumes",
                "no dataset_dir",
                "Pass the folder that they were trained on: --dataset_dir DIR",
            )
        return write_phantoms(
            kind=self.kind, output_dir=self.folders.phantoms, count=s.num_phantoms, image_size=s.phantom_size
        )

    @cached_property
    def lists(self) -> LabelledList:
        s = self.settings
        return build_labelled_list(
            self.root,
            manifest=s.get("manifest"),
            datalist=s.get("datalist"),
            classes=s.trained.get("class_values") or s.get("classes"),
            validation_fraction=s.validation_fraction,
            test_fraction=s.test_fraction,
            label_fraction=s.get("label_fraction", 100.0),
            subset_seed=s.get("subset_seed", 0),
            planar=s.planar,
            memory=self.cache / "label_maps.json" if is_main_process() else None,
            training=not s.trained,
        )

    @property
    def cache(self) -> Path:
        """Folder of what need not be computed again: the run's own, or one that several runs share."""
        return Path(self.settings.get("cache_dir") or self.folders.cache)

    @property
    def class_values(self) -> dict[str, int]:
        """Value in label maps by the name of each class, in the order of the network's channels 1, 2, ..."""
        return self.lists.classes

    @property
    def train(self) -> list[dict[str, Any]]:
        return self.lists.train

    @property
    def validation(self) -> list[dict[str, Any]]:
        return self.lists.validation

    @property
    def transform(self) -> Compose:
        """Preprocessing that ends in plain tensors, for caching."""
        return Compose([*self._steps, _Kept()])

    @property
    def _steps(self) -> list[Any]:
        return [
            *self.preprocessing,
            EncodeLabelsd("label", list(self.class_values.values())),
            SampleForegroundd("label"),
            _AddSpacing(),
            EnsureTyped(("image", "label", "foreground"), track_meta=False),
        ]

    @cached_property
    def key(self) -> str:
        """Hash of data, preprocessing and the settings that shape them."""
        configs = [config_item(name) for name in CACHED_CONFIGS]
        return content_hash([self.lists.data, self.settings.of_stage("data"), configs])

    @property
    def cache_dir(self) -> Path:
        """Folder of the preprocessed volumes, one per :attr:`key`."""
        return self.cache / f"labelled_{self.key[:24]}"

    def prepare(self) -> None:
        """Find and check the volumes, or make the phantoms, and preprocess them: before any training.

        Test volumes too, of which only that they could be is kept: else a broken one shows after the training.

        Raises:
            UserError: all volumes that can not be preprocessed (damaged, constant, not finite) are listed.
        """
        if is_main_process():
            _ = self.lists
            if self.settings.get("cache_dir") is None:  # a folder of several runs keeps what the others need
                for stale in set(self.cache.glob("labelled_*")) - {self.cache_dir}:
                    shutil.rmtree(stale, ignore_errors=True)
            self._fill_cache()
        barrier()
        _ = self.lists

    def _fill_cache(self) -> None:
        learnt, tested = [*self.train, *self.validation], self.lists.test
        volumes = SafePersistentDataset(learnt, self.transform, self.cache_dir)
        passed = SafePersistentDataset(tested, Compose([*self._steps, _Passed()]), self.cache_dir / "test")
        filled = _Filled(ConcatDataset([volumes, passed]), [*learnt, *tested])
        loader = DataLoader(filled, batch_size=None, num_workers=self.settings.num_workers)
        faults = [fault for fault in tqdm(loader, "Preprocessing", unit="volume") if fault is not None]
        raise_faults(faults, "every labelled image must be usable", "Correct these files, or move them out")

    def stored_settings(self) -> dict[str, Any]:
        """What goes into the checkpoints; ``trained_on`` are hashes of all that these weights and those before saw."""
        own = training_marks(self.lists.train) if self.settings.dataset_dir is not None else []  # phantoms are nobody
        return {
            **self.settings.stored(),
            "class_values": dict(self.class_values),
            "data": self.lists.data,
            "training_ids": self.lists.subjects("train"),
            "trained_on": sorted({*own, *exposure(settings_of(self.settings.pretrained))}),
        }

    def fingerprint(self, pretrained: str | None) -> str:
        """Hash of all that shapes the result except the number of steps."""
        configs = [_shaping(config_item(name)) for name in TRAINED_CONFIGS]
        weights = file_hash(pretrained) if pretrained is not None else None
        settings = self.settings.of_stage("data", "network", "finetuning")
        return content_hash([self.key, self.lists.fingerprint, settings, self.settings.seed, configs, weights])


def inherited(pretrained: Any) -> dict[str, Any]:
    """Options that must be those of a pre-trained network, from the settings beside its weights where there are any."""
    if pretrained is None or str(pretrained).strip().lower() in NONE_WORDS:
        return {}
    found = settings_of(str(pretrained))
    return {name: found[name] for name in INHERITED if name in found}


def settings_of(pretrained: str | None) -> Mapping[str, Any]:
    """What pre-trained weights say of their training; nothing where there are none, or they are of others."""
    settings = load_tensors(Path(pretrained).expanduser()).get("settings") if pretrained is not None else None
    return settings if isinstance(settings, dict) else {}


def exposure(settings: Mapping[str, Any]) -> list[str]:
    """Marks of the subjects and images that weights with these settings have seen, in all their trainings."""
    return [*settings.get("trained_on", ()), *map(subject_mark, settings.get("training_ids", ()))]


def trained_classes(weights: Weights) -> dict[str, int]:
    """Value in label maps by class, as the weights were trained.

    Raises:
        UserError: the weights know no classes: they are of another family, or there are none.
    """
    classes = weights.settings.get("class_values")
    if not classes:
        place = str(weights.folders.models / "model.pt")
        raise UserError("segmentation needs the weights of a fine-tuning", place, "Run train.json first")
    return dict(classes)


def augmented_axes(settings: Settings) -> tuple[int, ...]:
    """Array axes of ``--flips``."""
    return flip_axes(settings.flips or (), settings.orientation, settings.planar)


def _shaping(config: Any) -> Any:
    return {k: v for k, v in config.items() if k not in NOT_SHAPING} if isinstance(config, dict) else config


class _AddSpacing(Transform):
    """Voxel edges of the image as (3,), mm, which augmentation needs to turn it as a body turns.

    A Transform, since MONAI's cache ends before the first step that is none.
    """

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "spacing": torch.as_tensor(item["image"].pixdim, dtype=torch.float32)}


class _Filled(Dataset):
    """Preprocesses by index; gives the fault where a volume can not be."""

    def __init__(self, dataset: Dataset, items: Sequence[dict[str, Any]]) -> None:
        self.dataset, self.items = dataset, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Fault | None:
        try:
            _ = self.dataset[index]
        except Exception as error:  # MONAI wraps what a transform raises
            user_error = find_user_error(error)
            if user_error is None:
                raise
            return Fault.from_error(Path(self.items[index]["image"]), user_error)
        return None


class _Kept:
    """Keeps the tensors alone; finite, the label map in bytes."""

    def __call__(self, item: dict[str, Any]) -> dict[str, torch.Tensor]:
        image = item["image"].float()
        if not bool(torch.isfinite(image).all()):
            raise UserError("volumes must hold finite values after preprocessing", str(item.get("subject")))
        return {
            "image": image.contiguous(),
            "label": item["label"].to(torch.uint8).contiguous(),
            "foreground": item["foreground"].int(),
            "spacing": item["spacing"],
        }


class _Passed(Transform):
    """Nothing of a volume that :class:`_Kept` takes."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        _Kept()(item)
        return {}
