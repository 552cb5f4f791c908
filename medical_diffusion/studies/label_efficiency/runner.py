"""One run of a study: the fine-tune bundle's ``train.json``, then its ``evaluate.json``, in a folder of its own."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.bundle import ConfigWorkflow

from medical_diffusion.errors import UserError, find_user_error

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
        _free_memory()

    def run(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Train (or go on, or find it finished), evaluate, and read the report."""
        report = Path(options["run_dir"]) / REPORT
        report.unlink(missing_ok=True)  # of an evaluation before more training
        for name in STAGES:
            workflow = self._workflow(name, options)
            with _plain_errors():
                workflow.run()
                workflow.finalize()
            del workflow
            _free_memory()
        content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return content

    def _config(self, name: str) -> Path:
        return self.bundle / "configs" / f"{name}.json"

    def _workflow(self, name: str, options: Mapping[str, Any]) -> ConfigWorkflow:
        with _plain_errors():
            workflow = ConfigWorkflow(
                config_file=str(self._config(name)),
                workflow_type=STAGES[name],
                logging_file=False,
                **self._options_of(name, options),
            )
            workflow.initialize()
        return workflow

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


@contextmanager
def _plain_errors() -> Iterator[None]:
    """MONAI wraps what an expression raises; a user's error comes out as it was."""
    try:
        yield
    except RuntimeError as error:
        raise (find_user_error(error) or error) from error


def _free_memory() -> None:
    """Networks and optimisers hang in reference cycles of the engine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
