"""The unlabelled volumes of a pre-training: a folder, samples drawn on the way, or phantoms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from medical_diffusion.bundle.context import config_item
from medical_diffusion.bundle.folders import Folders
from medical_diffusion.bundle.pretraining.held_out import leave_out
from medical_diffusion.bundle.pretraining.source import DiffusionSource, FreshVolumes, HeldOutVolumes, source_settings
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.bundle.training_data import TrainingData
from medical_diffusion.data import DataList, SafePersistentDataset, build_datalist, read_header
from medical_diffusion.data.unlabelled_crops import UnlabelledCrops
from medical_diffusion.errors import UserError, find_user_error
from medical_diffusion.files import content_hash
from medical_diffusion.training.distributed import barrier, is_main_process, world_size

LARGEST_DEFAULT_AXIS = 96
SHOWN_FAULTS = 5
SAMPLE = "sample_"
SIDECARS = f"{SAMPLE}*.json"
STAGES = ("data", "network", "pretraining")
CONFIGS = ("network_def", "train")
NOT_SHAPING = ("handlers", "trainer", "dataloader", "evaluator", "checkpoint")
MAPPING = ("intensity", "window", "percentiles")
SEEN = "trained_on"


def inherited_defaults(
    dataset_dir: str | None, source_bundle: str | None, source_run_dir: str | None
) -> dict[str, Any]:
    """Defaults that follow from the volumes: size, channels and intensities of a folder that a diffusion bundle wrote,
    or of what ``source_bundle`` will draw; empty for other folders."""
    if source_bundle is not None:
        settings = source_settings(_path(source_bundle), None if source_run_dir is None else _path(source_run_dir))
        return {"image_size": _limited(settings["image_size"]), "channels": settings.get("channels", 1)}
    folder = None if dataset_dir is None else _path(dataset_dir)
    sidecars = sorted(folder.glob(SIDECARS)) if folder is not None and folder.is_dir() else []
    images = [path.with_name(path.stem + suffix) for path in sidecars for suffix in (".nii.gz", ".png")]
    first = next((path for path in images if path.is_file()), None)
    if first is None:
        return {}
    shape = read_header(first).shape
    written = _read_sidecar(first.with_name(first.name.split(".")[0] + ".json"))
    size = [*shape[:3], 1][:3] if first.suffix != ".png" else [*shape[:2], 1]
    inherited: dict[str, Any] = {"image_size": _limited(size)}
    if first.suffix == ".png":
        return {**inherited, "intensity": "stored", "channels": shape[-1] if len(shape) > 3 else 1}
    return {**inherited, "intensity": "window", "window": written.get("window") or [0.0, 1.0]}


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        written = error
    if not isinstance(written, dict):
        raise UserError(
            "the JSON beside a sample must be the one that inference wrote",
            f"{path} ({written if isinstance(written, Exception) else type(written).__name__})",
            "Draw the sample again, or remove the JSON and its sample",
        )
    return written


def _path(value: str) -> Path:
    return Path(str(value)).expanduser().resolve()


def _limited(size: Sequence[int]) -> list[int]:
    return [min(int(n), LARGEST_DEFAULT_AXIS) for n in size]


class PretrainingData(TrainingData):
    """Volumes to train and to validate on, found at first use.

    Args:
        settings, folders, kind, preprocessing: as of :class:`TrainingData`.
        device: where a diffusion bundle draws.
    """

    def __init__(
        self, settings: Settings, folders: Folders, kind: str, preprocessing: Sequence[Any], device: torch.device
    ) -> None:
        super().__init__(settings, folders, kind, preprocessing)
        self.device = device

    @cached_property
    def source(self) -> DiffusionSource | None:
        """The diffusion bundle that draws the volumes, if there is one."""
        s = self.settings
        if s.get("source_bundle") is None:
            return None
        if s.dataset_dir is not None:
            raise UserError("volumes come from --dataset_dir or from --source_bundle", "both", "Leave one of them out")
        if s.get("held_out") is not None:
            raise UserError("samples have no subjects to hold out", "--held_out", "Leave it out with --source_bundle")
        source = DiffusionSource(s.source_bundle, s.source_run_dir, self.device, s.source_sampler, s.source_steps)
        channels = source.settings.get("channels", 1)
        if channels != s.channels:
            raise UserError("--channels must be those of --source_bundle's samples", s.channels, f"Use {channels}")
        return source

    @cached_property
    def lists(self) -> DataList:
        """Training and held-out volumes; labels do not matter, and a preview beside samples is none of them."""
        s = self.settings
        lists = build_datalist(
            self.root,
            **self._listing(),
            labels=False,
            validation_fraction=s.validation_fraction,
            test_fraction=s.test_fraction,
        )
        if self.holds_samples:
            train, validation, test = (
                [item for item in part if Path(item["image"]).name.startswith(SAMPLE)]
                for part in (lists.train, lists.validation, lists.test)
            )
            lists = replace(lists, train=train, validation=validation, test=test)
        return lists if s.get("held_out") is None else leave_out(lists, s.held_out, s.validation_fraction)

    @property
    def holds_samples(self) -> bool:
        """Whether ``dataset_dir`` is a folder that a diffusion bundle wrote."""
        return self.settings.dataset_dir is not None and any(self.root.glob(SIDECARS))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """None: pre-training knows no classes."""
        return ()

    def prepare(self) -> None:
        """Find, read and check every volume now, keeping what preprocessing made of it; draw the held-out ones.

        Raises:
            UserError: nothing to train on, and all volumes that cannot be used, by name.
        """
        if self.source is not None:
            _ = self.validation_set[0]
            return
        super().prepare()
        if is_main_process():
            self._check_volumes()
        barrier()

    @cached_property
    def training_set(self) -> Dataset:
        """Items by (index, place in the run)."""
        s = self.settings
        if self.source is not None:
            batch = s.batch_size * world_size()
            return FreshVolumes(self.source, s.image_size, s.seed, batch, s.source_repeats)
        return UnlabelledCrops(self._volumes(self.train), s.image_size, s.seed)

    @cached_property
    def validation_set(self) -> Dataset:
        """Held-out items by index: the middle of each volume."""
        s = self.settings
        if self.source is not None:
            return HeldOutVolumes(self.source, s.image_size, s.num_previews)
        return UnlabelledCrops(self._volumes(self.validation), s.image_size)

    def held_out(self, count: int) -> Tensor:
        """The first held-out volumes (B, C, H, W, D)."""
        images = [self.validation_set[n]["image"] for n in range(min(count, len(self.validation_set)))]  # type: ignore
        return torch.stack(images)

    @property
    def output_spacing(self) -> list[float]:
        """Millimetres per voxel, for pictures and for who uses the weights."""
        if self.source is None:
            return super().output_spacing
        stored = self.source.settings
        sizes = zip(stored["output_spacing"], stored["image_size"], self.settings.image_size, strict=True)
        return [round(spacing * before / after, 6) for spacing, before, after in sizes]

    @cached_property
    def key(self) -> str:
        """What identifies the volumes."""
        if self.source is None:
            return super().key
        return content_hash([self.source.hashes, self.source.options["sampler"], self.source.options["num_steps"]])

    @property
    def trained_on(self) -> list[str]:
        """Of whom these weights learn: the training part, or whom a source of samples was trained on."""
        return super().trained_on if self.source is None else list(self.source.settings.get(SEEN, ()))

    def stored_settings(self) -> dict[str, Any]:
        """What goes into the checkpoints; ``trained_on`` are hashes by which an evaluation knows its subjects again."""
        stored = {**self.settings.stored(), "output_spacing": self.output_spacing, SEEN: self.trained_on}
        if self.source is None:
            return stored | {"split": self.lists.fingerprint}
        mapped = {name: self.source.settings[name] for name in MAPPING if name in self.source.settings}
        return stored | mapped | {"split": None, "through_samples": True}

    def fingerprint(self, stage: str = "pretraining", *extra: Any) -> str:
        """Hash of all that shapes the weights except the number of steps."""
        configs = [config_item(name) for name in CONFIGS]
        shaping = [{k: v for k, v in c.items() if k not in NOT_SHAPING} for c in configs if isinstance(c, dict)]
        return content_hash([self.key, self.settings.of_stage(*STAGES), self.settings.seed, shaping, list(extra)])

    def _volumes(self, items: list[dict[str, Any]]) -> SafePersistentDataset:
        return SafePersistentDataset(items, self.transform, cache_dir=self.cache_dir)

    def _check_volumes(self) -> None:
        items = [*self.train, *self.validation]
        checked = _Checked(self._volumes(items))
        loader = DataLoader(checked, batch_size=None, num_workers=self.settings.num_workers)
        silent = len(items) < SHOWN_FAULTS
        faults = [fault for fault in tqdm(loader, desc="reading volumes", unit="volume", disable=silent) if fault]
        if faults:
            rules = sorted({rule for rule, _, _ in faults})
            received = [text for _, text, _ in faults[:SHOWN_FAULTS]]
            more = f" and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
            raise UserError("; ".join(rules), "; ".join(received) + more, faults[0][2])


class _Checked(Dataset):
    """For each volume what is wrong with it: (rule, received, remedy), or nothing."""

    def __init__(self, volumes: Dataset) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[str, str, str] | tuple[()]:
        try:
            self.volumes[index]
        except Exception as error:
            found = find_user_error(error)
            if found is None:
                raise
            return found.rule, str(found.received), found.remedy or ""
        return ()
