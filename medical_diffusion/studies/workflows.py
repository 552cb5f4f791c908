"""A bundle's configuration run inside a study, with errors as a user should see them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from medical_diffusion.errors import find_user_error


@contextmanager
def plain_errors() -> Iterator[None]:
    """MONAI wraps what an expression raises; a user's error comes out as it was."""
    try:
        yield
    except RuntimeError as error:
        raise (find_user_error(error) or error) from error


def open_workflow(bundle: Path, config: str, kind: str, options: Mapping[str, Any]) -> ConfigWorkflow:
    """The workflow of ``configs/<config>.json`` with options, initialised.

    Args:
        bundle: folder of the bundle.
        config: name of the configuration.
        kind: MONAI's kind of workflow: "train" or "infer".
        options: by name.

    Raises:
        UserError: what the bundle refuses.
    """
    with plain_errors():
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs" / f"{config}.json"), workflow_type=kind, logging_file=False, **options
        )
        workflow.initialize()
    return workflow


def free_memory() -> None:
    """Networks and optimisers hang in reference cycles of the engine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
