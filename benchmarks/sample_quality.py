"""Quality of drawn samples beside the real volumes of their run, as Markdown, with a picture of nearest neighbours.

    python benchmarks/sample_quality.py --run_dir RUN --samples DIR [--dataset_dir DATA] [--output OUT.png]

High-frequency energy of samples and of reconstructions by that of held-out and training volumes; for chest CT the
organs found in HU; distances to the nearest training volumes, with held-out volumes as reference. The samples come
from ``inference.json``; the split is that of the run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from medical_diffusion.bundle.settings import stored_settings
from medical_diffusion.data.augmentation import flip_variants
from medical_diffusion.evaluation.anatomy import chest_anatomy
from medical_diffusion.evaluation.neighbours import memorisation
from medical_diffusion.evaluation.spectrum import high_frequency_ratio
from medical_diffusion.pictures import picture_of, read_png, volume_grid, write_png

PICTURED = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to evaluate.json: --name value.",
    )
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--samples", required=True)
    parser.add_argument("--dataset_dir")
    parser.add_argument("--bundle", default="bundles/lidc_ldm")
    parser.add_argument("--output", default="neighbours.png")
    parser.add_argument("--anatomy", action="store_true", help="count the organs of a chest CT")
    args, args_of_evaluation = parser.parse_known_args()
    args.options = args_of_evaluation
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


def stack(dataset: Any) -> torch.Tensor:
    return torch.stack([torch.as_tensor(dataset[n]["image"]) for n in range(len(dataset))])


def read_volumes(folder: str, settings: Any) -> tuple[torch.Tensor, list[Any]]:
    """NIfTI samples in [-1, 1], (N, 1, H, W, D), and the files' images."""
    files = sorted(Path(folder).glob("sample_*.nii.gz"), key=lambda p: int(p.name[7:-7]))
    low, high = settings.window if settings.intensity == "window" else (0.0, 1.0)
    images: list[Any] = [nibabel.load(f) for f in files]
    samples = torch.stack([torch.from_numpy(np.asarray(i.dataobj, np.float32))[None] for i in images])
    return (samples - low) / (high - low) * 2 - 1, images


def read_images(folder: str) -> tuple[torch.Tensor, list[Any]]:
    """PNG samples in [-1, 1], (N, C, H, W, 1)."""
    files = sorted(Path(folder).glob("sample_*.png"), key=lambda p: int(p.stem[7:]))
    arrays = [read_png(f) for f in files]
    scaled = [torch.from_numpy(a / np.iinfo(a.dtype).max * 2 - 1).float() for a in arrays]
    return torch.stack([a.movedim(-1, 0)[..., None] if a.dim() == 3 else a[None, ..., None] for a in scaled]), []


@torch.no_grad()
def main() -> None:
    args = arguments()
    flow = load_run(args)
    get = flow.parser.get_parsed_content
    data, settings = get("data"), get("settings")
    held_out = stack(get("dataset"))
    training = torch.stack([torch.as_tensor(data.transform(dict(item))["image"]) for item in data.train])
    samples, images = read_images(args.samples) if settings.planar else read_volumes(args.samples, settings)
    autoencoder = get("autoencoder_def").eval().cpu()
    reconstructed = torch.cat([autoencoder(v[None]) for v in held_out]).clamp(-1, 1)

    rows: list[tuple[str, str]] = [
        ("samples, held-out, training volumes", f"{len(samples)}, {len(held_out)}, {len(training)}")
    ]
    for name, volumes in (("samples", samples), ("reconstructions", reconstructed), ("training volumes", training)):
        rows.append((f"high-frequency energy, {name} by held-out", f"{high_frequency_ratio(volumes, held_out):.3f}"))
    rows.append(("high-frequency energy, samples by training", f"{high_frequency_ratio(samples, training):.3f}"))
    variation = samples.std(0).mean() / training.std(0).mean()
    rows.append(("variation between samples by that between training volumes", f"{float(variation):.3f}"))
    if args.anatomy:
        found = [chest_anatomy(np.asarray(i.dataobj), i.header.get_zooms()[:3]) for i in images]  # type: ignore
        rows.append(
            ("samples with body, lungs, spine and heart in place", f"{sum(a.complete for a in found)} of {len(found)}")
        )
        for organ in ("body", "left_lung", "right_lung", "spine", "heart"):
            rows.append((f"samples with {organ.replace('_', ' ')}", str(sum(getattr(a, organ) for a in found))))
    # a mirrored copy is a copy where training mirrored its volumes
    flips = [[axis + 2 for axis in axes] for axes in flip_variants(stored_settings(args.run_dir).get("flip_axes", []))]
    seen = torch.cat([training.flip(axes) if axes else training for axes in flips])
    report = memorisation(samples, seen, held_out)
    for name, neighbours in (("samples", report.samples), ("held-out volumes", report.held_out)):
        near = neighbours.distances[:, 0]
        rows.append(
            (f"distance to the nearest training volume, {name}", f"{near.mean():.4f} (smallest {near.min():.4f})")
        )
        rows.append((f"smallest ratio to the following neighbours, {name}", f"{neighbours.ratio.min():.3f}"))
    rows.append(("samples that are copies of training volumes (ratio < 0.5)", str(int(report.copies.sum()))))
    reconstruction = Path(args.run_dir) / "reports" / "reconstruction.json"
    if reconstruction.is_file():
        content = json.loads(reconstruction.read_text())
        for name, entry in content["reconstruction"].items():
            rows.append((f"reconstruction {name}", f"{entry['mean']:.4g} ± {entry['std'] or 0:.2g}"))
        rows.append(("trilinear psnr", f"{content['trilinear_baseline']['psnr']['mean']:.4g}"))
        if "codebook" in content:
            rows.append(("codes used", f"{100 * content['codebook']['codes_used']:.0f} %"))
    print("| figure | value |\n| --- | --- |")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))

    shown = [picture_of(v) for v in samples[:PICTURED]]
    nearest = [picture_of(seen[n]) for n in report.samples.indices[:PICTURED, 0]]
    picture = volume_grid([("synthetic", shown), ("nearest training volume", nearest)], (-1.0, 1.0))
    write_png(args.output, picture)
    print(f"\npicture: {args.output}")


if __name__ == "__main__":
    main()
