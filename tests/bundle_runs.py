"""Running a bundle small and fast: options that shrink everything, and calls as the command line makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "lidc_ldm"

TINY_MODEL: dict[str, Any] = {
    "image_size": [16, 16, 16],
    "num_codes": 16,
    "autoencoder_channels": 8,
    "unet_channels": 8,
    "channel_multipliers": [1, 2],
    "attention_heads": 2,
    "timesteps": 8,
}
TINY_TRAINING: dict[str, Any] = {
    **TINY_MODEL,
    "num_phantoms": 6,
    "discriminator_channels": 8,
    "batch_size": 2,
    "autoencoder_steps": 4,
    "diffusion_batch_size": 4,
    "diffusion_steps": 4,
    "validation_interval": 4,
    "num_previews": 2,
    "device": "cpu",
    "checkpoint_interval": 0,
}


def workflow(config: str, *overlays: str, bundle: Path = BUNDLE, kind: str = "train", **options: Any) -> ConfigWorkflow:
    """The workflow of ``configs/<config>.json`` with overrides, not yet initialised."""
    files = [str(bundle / "configs" / f"{name}.json") for name in (config, *overlays)]
    return ConfigWorkflow(config_file=files, workflow_type=kind, logging_file=False, **options)


def run(config: str, bundle: Path = BUNDLE, **options: Any) -> ConfigWorkflow:
    """Initialise, run and finalise in this process."""
    kind = "train" if config.startswith("train") else "infer"
    flow = workflow(config, bundle=bundle, kind=kind, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def command_line(*arguments: str, cwd: Path = ROOT, module: str = "monai.bundle") -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle <arguments>`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Options as the command line takes them."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]
