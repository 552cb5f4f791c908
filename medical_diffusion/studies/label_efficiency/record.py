"""What lies in a study's folder: ``study.json`` says what is studied, ``cell.json`` in a run's folder that it is done.

The same study may grow (more arms, fractions or repeats) but never change: Dice of other data, options or weights must
not stand in one table. So a command that differs from ``study.json`` is refused before it writes anything.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monai
import torch

from medical_diffusion import __version__
from medical_diffusion.data.listing.discovery import check_dataset_dir
from medical_diffusion.errors import UserError
from medical_diffusion.files import content_hash, file_hash, write_json
from medical_diffusion.studies.label_efficiency.plan import Arm, Cell, Plan, default_network, network_of

logger = logging.getLogger(__name__)

STUDY = "study.json"
CELL = "cell.json"
DEFAULTS = {"test_check": "refuse", "transferred_rate": "1"}
"""Options of the bundle whose default a study changes: arms are compared on subjects that none of them has seen, and at
one learning rate in all layers (half a rate in all pre-trained ones would be another difference)."""
RESERVED = {
    "dataset_dir": "--dataset_dir of the study",
    "pretrained": "--pretrained of the study",
    "label_fraction": "--fractions",
    "subset_seed": "--repeats (a repeat is a seed)",
    "seed": "--repeats (a repeat is a seed)",
    "run_dir": "--output",
}
"""Options that the study sets for every run, with what sets them."""
NOT_SHAPING = ("device", "num_workers", "num_threads", "cache_gb", "checkpoint_interval")
"""Options of the bundle that change no result: shards and a command that continues may have their own."""


class StudyRecord:
    """The files of one study.

    Args:
        folder: of the study.
        plan: what this command asks for.
        bundle: folder of the fine-tuning bundle.
        options: of the bundle, for all runs.
        dataset_dir: labelled data, None for phantoms.

    Raises:
        UserError: an option that the study sets itself, or data that are missing.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        bundle: str | Path,
        options: Mapping[str, Any],
        dataset_dir: str | Path | None,
    ) -> None:
        for name in options:
            if name in RESERVED:
                raise UserError(f"the study itself sets {name}", f"--{name}", f"Use {RESERVED[name]}")
        self.folder, self.plan, self.options = folder, plan, dict(options)
        self.network = network_of(plan.arms)
        self.dataset_dir = None if dataset_dir is None else str(check_dataset_dir(dataset_dir).resolve())
        self._default_network = default_network(bundle, phantoms=dataset_dir is None)
        self._content: dict[str, Any] = {
            "bundle": Path(bundle).name,
            "dataset_dir": self.dataset_dir,
            "data": _data_hash(self.dataset_dir, options, folder),
            "options": _shaping({**DEFAULTS, **options}),
            "network": self.network,
            "versions": {"medical_diffusion": __version__, "torch": torch.__version__, "monai": monai.__version__},
            "arms": [asdict(arm) for arm in plan.arms],
            "fractions": list(plan.fractions),
            "repeats": plan.repeats,
        }

    @property
    def cache(self) -> Path:
        """Preprocessed volumes, which are the same for all runs."""
        return self.folder / "cache"

    @property
    def stated_options(self) -> dict[str, str]:
        """Options of the bundle that shape all runs, with the study's own defaults."""
        return dict(self._content["options"])

    def begin(self) -> None:
        """Write ``study.json``, or check the one that is there and let the study grow by what is new.

        Raises:
            UserError: the folder holds a study of other data, options or weights, or something else.
        """
        path = self.folder / STUDY
        if path.is_file():
            earlier = _read(path)
            self._compare(earlier)
            if earlier["versions"] != self._content["versions"]:
                logger.warning("The study was begun with other versions: %s", earlier["versions"])
            self.plan = self._united(earlier)
            self.network = {**earlier["network"], **self.network}
            self._content |= {
                "versions": earlier["versions"],
                "network": self.network,
                "arms": [asdict(arm) for arm in self.plan.arms],
                "fractions": list(self.plan.fractions),
                "repeats": self.plan.repeats,
            }
        elif self.folder.is_dir() and any(not p.name.startswith(".") for p in self.folder.iterdir()):
            raise UserError(
                "the folder of a new study must be empty", str(self.folder), "Pass another --output, or empty this one"
            )
        write_json(path, self._content)

    def options_of(self, cell: Cell) -> dict[str, Any]:
        """Options of the bundle for one run."""
        return {
            **self.network,
            "cache_dir": str(self.cache.resolve()),
            **DEFAULTS,
            **self.options,
            "dataset_dir": self.dataset_dir,
            "pretrained": self.plan.arm(cell.arm).weights,
            "label_fraction": cell.fraction,
            "subset_seed": cell.repeat,
            "seed": cell.repeat,
            "run_dir": str((self.folder / cell.folder).resolve()),
        }

    def check_weights(self, cell: Cell) -> None:
        """Whether the file of the run's arm is what it was when the command began.

        Raises:
            UserError: it has changed or is gone.
        """
        arm = self.plan.arm(cell.arm)
        if arm.weights is None:
            return
        path = Path(arm.weights)
        if not path.is_file() or file_hash(path) != arm.sha256:
            raise UserError(
                "weights of an arm must stay as they are while a study runs",
                f"{path} {'has changed' if path.is_file() else 'is gone'}",
                "Bring back the file that the study began with, or begin a new study in another folder",
            )

    def is_finished(self, cell: Cell) -> bool:
        """Whether the run has left its report."""
        return (self.folder / cell.folder / CELL).is_file()

    def finish(self, cell: Cell, report: Mapping[str, Any], seconds: float) -> None:
        """Keep a run's report: from here on it is finished."""
        content = {**asdict(cell), "seconds": round(seconds, 1), "report": dict(report)}
        write_json(self.folder / cell.folder / CELL, content)

    def reports(self) -> dict[Cell, dict[str, Any]]:
        """What all finished runs of the study left, those of other shards included."""
        return {cell: _read(self.folder / cell.folder / CELL) for cell in self.plan.cells if self.is_finished(cell)}

    def add(self, **facts: Any) -> None:
        """Write what the runs have shown into ``study.json``."""
        path = self.folder / STUDY
        write_json(path, _read(path) | facts)  # another shard may have let the study grow

    def _compare(self, earlier: Mapping[str, Any]) -> None:
        meanings = {"bundle": "bundles", "data": "labelled data", "options": "options of the bundle"}
        before = {**earlier, "options": _shaping(earlier.get("options", {}))}
        for name, meaning in meanings.items():
            if before.get(name) != self._content[name]:
                raise _other_study(self.folder, meaning, _difference(before.get(name), self._content[name]))
        # in the order of a run: options come last
        used = _texts({**self._default_network, **earlier["network"], **self.options})
        asked = {option: value for option, value in _texts(self.network).items() if option not in self.options}
        if any(used.get(option) != value for option, value in asked.items()):
            raise _other_study(self.folder, "networks", _difference({k: used.get(k) for k in asked}, asked))
        hashes = {arm["name"]: arm["sha256"] for arm in earlier["arms"]}
        for arm in self.plan.arms:
            if hashes.get(arm.name, arm.sha256) != arm.sha256:
                raise _other_study(self.folder, f"weights of the arm {arm.name}", f"{arm.weights} is another file")

    def _united(self, earlier: Mapping[str, Any]) -> Plan:
        """The earlier study with what this command adds; paths of weights are this command's."""
        arms = {entry["name"]: Arm(**entry) for entry in earlier["arms"]} | {arm.name: arm for arm in self.plan.arms}
        fractions = {*earlier["fractions"], *self.plan.fractions}
        return Plan.of(list(arms.values()), sorted(fractions), max(earlier["repeats"], self.plan.repeats))


def _shaping(options: Mapping[str, Any]) -> dict[str, str]:
    return _texts({name: value for name, value in sorted(options.items()) if name not in NOT_SHAPING})


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Values as the command line gives them."""
    return {name: str(value) for name, value in options.items()}


def _other_study(folder: Path, what: str, received: str) -> UserError:
    return UserError(
        f"a study must go on as it began; this folder holds one with other {what}",
        f"{folder}: {received}",
        "Run the command that began it (study.json holds its options), or pass another --output",
    )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        return ", ".join(f"{n} was {before.get(n) or 'not given'}, is {now.get(n) or 'not given'}" for n in names)
    return "files were added, removed or changed" if len(str(now)) == 64 else f"was {before}, is {now}"


def _data_hash(dataset_dir: str | None, options: Mapping[str, Any], own: Path) -> str:
    """Hash of the names and sizes of all data files, and of the contents of lists that options name."""
    files: list[tuple[str, int]] = []
    for folder, names, entries in os.walk(dataset_dir) if dataset_dir is not None else ():
        inner = (Path(folder) / name for name in names)
        names[:] = sorted(p.name for p in inner if not p.name.startswith(".") and p.resolve() != own.resolve())
        paths = (Path(folder) / entry for entry in sorted(entries) if not entry.startswith("."))
        files += [(p.relative_to(str(dataset_dir)).as_posix(), p.stat().st_size) for p in paths]
    lists = {n: file_hash(v) for n, v in options.items() if isinstance(v, str | Path) and Path(v).is_file()}
    return content_hash([files, lists])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.name} of a study must be readable", f"{path} ({error})", "Delete this file to run what it stood for"
        ) from error
    return content
