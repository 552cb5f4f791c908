"""Do samples show the class that was asked for? One Markdown table for folders of samples of one run.

    python benchmarks/class_agreement.py --run_dir RUN --samples DIR [--samples DIR2] [--dataset_dir DATA]

A small classifier is trained on the training split of the run's data and checked on its held-out images; then it judges
the samples of ``inference.json``, in one row for each folder and guidance scale. Further options are those of
``evaluate.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from sample_quality import load_run
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.agreement import AgreementReport, ClassAgreement


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to evaluate.json: --name value.",
    )
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--samples", required=True, action="append", help="folder of samples; may be given again")
    parser.add_argument("--dataset_dir")
    parser.add_argument("--bundle", default="bundles/chexpert_ldm")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the classifier")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args, args_of_evaluation = parser.parse_known_args()
    args.options = args_of_evaluation
    return args


def read_sample(sidecar: Path, limits: tuple[float, float]) -> Tensor:
    """The image of a sidecar as (C, H, W, D) in [-1, 1]; ``limits`` are the values of -1 and 1 in a NIfTI."""
    png = sidecar.with_suffix(".png")
    if png.is_file():
        values = np.asarray(Image.open(png))
        limits = (0.0, 65535.0 if values.dtype.itemsize > 1 else 255.0)
        values = np.atleast_3d(values.astype(np.float32)).transpose(2, 0, 1)[..., None]
    else:
        values = np.asarray(nibabel.load(sidecar.with_suffix(".nii.gz")).dataobj, np.float32)[None]  # type: ignore
    low, high = limits
    return torch.from_numpy(values - low) / (high - low) * 2 - 1


def read_samples(folder: str | Path, limits: tuple[float, float]) -> dict[Any, tuple[Tensor, list[str]]]:
    """By guidance scale the samples of a folder (N, C, H, W, D) in [-1, 1], and the class that each was asked for.

    Raises:
        UserError: no samples, or samples without a class.
    """
    found: dict[Any, list[tuple[Tensor, str]]] = defaultdict(list)
    sidecars = sorted(Path(folder).glob("sample_*.json"), key=lambda path: int(path.stem.split("_")[1]))
    if not sidecars:
        raise UserError("--samples must be a folder of sample_<seed>.json beside their images", str(folder))
    for sidecar in sidecars:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        if content.get("class_name") is None:
            raise UserError("agreement needs samples of a class", f"no class_name in {sidecar}", "Sample with labels")
        found[content.get("guidance_scale")].append((read_sample(sidecar, limits), content["class_name"]))
    return {scale: (torch.stack([i for i, _ in part]), [c for _, c in part]) for scale, part in found.items()}


def table(classes: Sequence[str], rows: Iterable[tuple[str, Any, AgreementReport]]) -> str:
    """Markdown: one row for each set of images, by (name, guidance scale, report)."""
    lines = [f"| images | guidance scale | agree | {' | '.join(classes)} |", "| --- " * (3 + len(classes)) + "|"]
    for name, scale, report in rows:
        cells = [name, "" if scale is None else f"{scale:g}", str(report.overall)]
        lines.append(f"| {' | '.join([*cells, *(str(report.by_class[c]) for c in classes)])} |")
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    get = load_run(args).parser.get_parsed_content
    data, settings = get("data"), get("settings")
    limits = tuple(settings.window) if settings.intensity == "window" else (0.0, 1.0)

    def images_of(items: Sequence[dict[str, Any]]) -> tuple[Tensor, list[int]]:
        images = [torch.as_tensor(data.transform(dict(item))["image"]) for item in items]
        return torch.stack(images), [int(item["class_label"]) for item in items]

    training, held_out = images_of(data.train), images_of([*data.validation, *data.lists.test])
    start = time.perf_counter()
    classes = data.lists.classes  # in the order of the labels of its items
    judge = ClassAgreement(classes, steps=args.steps).fit(*training)
    seconds = time.perf_counter() - start
    rows: list[tuple[str, Any, AgreementReport]] = [("real, held out", None, judge.agreement(*held_out))]
    for folder in args.samples:
        rows += [(folder, scale, judge.agreement(*part)) for scale, part in read_samples(folder, limits).items()]
    print(
        f"Classifier: {len(training[0])} real training images, {args.steps} steps in {seconds:.0f} s; "
        f"AUROC {judge.auroc(*held_out):.3f} on {len(held_out[0])} held-out ones.\n"
    )
    print(table(classes, rows))


if __name__ == "__main__":
    main()
