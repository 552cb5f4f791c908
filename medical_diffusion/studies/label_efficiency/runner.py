"""One run of a study: the fine-tune bundle's ``train.json``, then its ``evaluate.json``, in a folder of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from monai.bundle import ConfigWorkflow

from medical_diffusion.errors import UserError
from medical_diffusion.studies.workflows import free_memory, open_workflow, plain_errors

REPORT = Path("reports") / "segmentation.json"
STAGES = {"train": "train", "evaluate": "infer"}
"""Configurations by name, with the kind of MONAI's workflow."""


class CellRunner(Protocol):
    """What a study needs of a training procedure."""

    def check(self, options: Mapping[str, Any]) -> None:
        """Find fault with data and weights before any long work.

        Raises:
            UserError: what a run with these options would refuse.
        """
        ...

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Train and evaluate; returns the report, which lies in ``options["run_dir"]``."""
        ...


class BundleRunner:
    """Trains and evaluates with a bundle, in this process.

    Args:
        bundle: folder with ``configs/train.json`` and ``configs/evaluate.json``.

    Raises:
        UserError: it lacks one of them.
    """

    def __init__(self, bundle: str | Path) -> None:
        self.bundle = Path(bundle)
        for name in STAGES:
            if not self._config(name).is_file():
                raise UserError("a study needs a bundle that trains and evaluates", f"{self._config(name)} is missing")
        self._keys = {name: set(json.loads(self._config(name).read_text(encoding="utf-8"))) for name in STAGES}
        if "label_fraction" not in self._keys["train"]:
            raise UserError(
                "a label-efficiency study needs a bundle with the option label_fraction",
                self.bundle.name,
                "Use swin_unetr_finetune",
            )

    def check(self, options: Mapping[str, Any]) -> None:
        """Initialise the training, which reads headers and weights, and leave it at that."""
        self._workflow("train", options)
        free_memory()

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Train (or go on, or find it finished), evaluate, and read the report."""
        report = Path(options["run_dir"]) / REPORT
        report.unlink(missing_ok=True)  # of an evaluation before more training
        for name in STAGES:
            workflow = self._workflow(name, options)
            with plain_errors():
                workflow.run()
                workflow.finalize()
            del workflow
            free_memory()
        content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return content

    def _config(self, name: str) -> Path:
        return self.bundle / "configs" / f"{name}.json"

    def _workflow(self, name: str, options: Mapping[str, Any]) -> ConfigWorkflow:
        return open_workflow(self.bundle, name, STAGES[name], self._options_of(name, options))

    def _options_of(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """What concerns one configuration; training gets what concerns none, and refuses it by name."""
        given = {key: value for key, value in options.items() if value is not None}
        items = {key: re.split("#|::", key)[0] for key in given}  # an override may reach into an item
        known = set().union(*self._keys.values())
        return {
            key: value
            for key, value in given.items()
            if items[key] in self._keys[name] or (name == "train" and items[key] not in known)
        }
