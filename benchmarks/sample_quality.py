"""Quality of drawn samples beside the real volumes of their run, as Markdown, with a picture of nearest neighbours.

    python benchmarks/sample_quality.py --run_dir RUN --samples DIR [--dataset_dir DATA] [--output OUT.png]

High-frequency energy of samples and of reconstructions by that of held-out and training volumes (where there are
classes, against volumes of the same class, and each class by itself: a sum can hide one); for chest CT the organs found
in HU; distances to the nearest training volumes, with held-out volumes as reference. The samples come
from ``inference.json``; the split is that of the run.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from samples import load_run, parse, read_images, read_samples, sample_parser

from medical_diffusion.bundle.settings import stored_settings
from medical_diffusion.data.augmentation import flip_variants
from medical_diffusion.evaluation.anatomy import chest_anatomy
from medical_diffusion.evaluation.neighbours import memorisation
from medical_diffusion.evaluation.spectrum import high_frequency_ratio
from medical_diffusion.pictures import picture_of, volume_grid, write_png

PICTURED = 8


@torch.no_grad()
def main() -> None:
    parser = sample_parser(__doc__, "bundles/lidc_ldm")
    parser.add_argument("--output", default="neighbours.png")
    parser.add_argument("--anatomy", action="store_true", help="count the organs of a chest CT")
    args = parse(parser)
    get = load_run(args).parser.get_parsed_content
    data, settings = get("data"), get("settings")
    held_out, training = read_images(data, data.validation), read_images(data, data.train)
    drawn = [sample for folder in args.samples for sample in read_samples(folder, settings)]
    samples = torch.stack([sample.image for sample in drawn])
    asked = [data.class_names.index(s.class_name) for s in drawn] if data.class_names else None
    labels = {"held-out": data.labels_of(data.validation), "training": data.labels_of(data.train)}
    autoencoder = get("autoencoder_def").eval().cpu()
    reconstructed = torch.cat([autoencoder(v[None]) for v in held_out]).clamp(-1, 1)

    rows: list[tuple[str, str]] = [
        ("samples, held-out, training volumes", f"{len(samples)}, {len(held_out)}, {len(training)}")
    ]
    for name, volumes, classes in (
        ("samples", samples, asked),
        ("reconstructions", reconstructed, labels["held-out"]),
        ("training volumes", training, labels["training"]),
    ):
        ratio = high_frequency_ratio(volumes, held_out, labels=classes, real_labels=labels["held-out"])
        rows.append((f"high-frequency energy, {name} by held-out", f"{ratio:.3f}"))
    for index, name in enumerate(data.class_names if asked else ()):
        drawn_of = samples[[c == index for c in asked or ()]]
        real_of = held_out[[c == index for c in labels["held-out"]]]
        if len(drawn_of) and len(real_of):
            ratio = high_frequency_ratio(drawn_of, real_of)
            rows.append((f"high-frequency energy, {len(drawn_of)} samples of {name} by held-out", f"{ratio:.3f}"))
    ratio = high_frequency_ratio(samples, training, labels=asked, real_labels=labels["training"])
    rows.append(("high-frequency energy, samples by training", f"{ratio:.3f}"))
    variation = samples.std(0).mean() / training.std(0).mean()
    rows.append(("variation between samples by that between training volumes", f"{float(variation):.3f}"))
    if args.anatomy:
        found = [chest_anatomy(np.asarray(s.volume.dataobj), s.volume.header.get_zooms()[:3]) for s in drawn]
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
        content = json.loads(reconstruction.read_text(encoding="utf-8"))
        for name, entry in content["reconstruction"].items():
            spread = "" if entry["std"] is None else f" ± {entry['std']:.2g}"
            rows.append((f"reconstruction {name}", f"{entry['mean']:.4g}{spread}"))
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
