"""What the benchmarks of drawn samples share: their options, the run's evaluation workflow, and reading samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.pictures import read_png


def sample_parser(description: str | None, bundle: str) -> argparse.ArgumentParser:
    """Parser with the options that find a run and its data; ``bundle`` is the default bundle folder."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to evaluate.json: --name value.",
    )
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--samples", required=True, action="append", help="folder of samples; may be given again")
    parser.add_argument("--dataset_dir")
    parser.add_argument("--bundle", default=bundle)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Arguments, with those for ``evaluate.json`` under ``options``."""
    args, args.options = parser.parse_known_args()
    return args


def load_run(args: argparse.Namespace) -> ConfigWorkflow:
    """The evaluation workflow of the run: its data, split and autoencoder."""
    options: dict[str, Any] = dict(zip((o[2:] for o in args.options[::2]), args.options[1::2], strict=True))
    if args.dataset_dir:
        options["dataset_dir"] = args.dataset_dir
    config = Path(args.bundle) / "configs" / "evaluate.json"
    flow = ConfigWorkflow(str(config), workflow_type="infer", logging_file=False, run_dir=args.run_dir, **options)
    flow.initialize()
    return flow


def read_images(data: Any, items: Sequence[dict[str, Any]]) -> Tensor:
    """Preprocessed real images of list items of ``data``, (N, C, H, W, D) in [-1, 1]."""
    return torch.stack([torch.as_tensor(data.transform(dict(item))["image"]) for item in items])


@dataclass(frozen=True)
class Sample:
    """One drawn sample.

    Attributes:
        image: (C, H, W, D) in [-1, 1].
        class_name: that it was asked for; None without classes.
        guidance_scale: of its drawing.
        volume: its NIfTI image; None where it is a PNG.
    """

    image: Tensor
    class_name: str | None
    guidance_scale: float | None
    volume: Any


def read_samples(folder: str | Path, settings: Any) -> list[Sample]:
    """Samples of a folder that ``inference.json`` wrote, in the order of their seeds.

    Raises:
        UserError: no samples.
    """
    sidecars = sorted(Path(folder).glob("sample_*.json"), key=lambda path: int(path.stem.split("_")[1]))
    if not sidecars:
        raise UserError("--samples must be a folder of sample_<seed>.json beside their images", str(folder))
    limits = tuple(settings.window) if settings.intensity == "window" else (0.0, 1.0)
    return [_read_sample(sidecar, limits) for sidecar in sidecars]


def _read_sample(sidecar: Path, limits: tuple[float, float]) -> Sample:
    """``limits`` are the values of -1 and 1 in a NIfTI."""
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    png, volume = sidecar.with_suffix(".png"), None
    if png.is_file():
        values = read_png(png)
        limits = (0.0, float(np.iinfo(values.dtype).max))
        values = np.atleast_3d(values.astype(np.float32)).transpose(2, 0, 1)[..., None]
    else:
        volume = nibabel.load(sidecar.with_suffix(".nii.gz"))
        values = np.asarray(volume.dataobj, np.float32)[None]  # type: ignore[attr-defined]
    low, high = limits
    image = torch.from_numpy(values - low) / (high - low) * 2 - 1
    return Sample(image, content.get("class_name"), content.get("guidance_scale"), volume)
