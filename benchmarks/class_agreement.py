"""Do samples show the class that was asked for? One Markdown table for folders of samples of one run.

    python benchmarks/class_agreement.py --run_dir RUN --samples DIR [--samples DIR2] [--dataset_dir DATA]

A small classifier is trained on the training split of the run's data and checked on its held-out images; then it judges
the samples of ``inference.json``, in one row for each folder and guidance scale. Further options are those of
``evaluate.json``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from samples import Sample, load_run, parse, read_images, read_samples, sample_parser
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.agreement import AgreementReport, ClassAgreement


def by_guidance(samples: Sequence[Sample]) -> dict[Any, tuple[Tensor, list[str]]]:
    """By guidance scale the samples (N, C, H, W, D) in [-1, 1], and the class that each was asked for.

    Raises:
        UserError: samples without a class.
    """
    found: dict[Any, list[tuple[Tensor, str]]] = defaultdict(list)
    for sample in samples:
        if sample.class_name is None:
            raise UserError("agreement needs samples of a class", "a sample without class_name", "Sample with labels")
        found[sample.guidance_scale].append((sample.image, sample.class_name))
    return {scale: (torch.stack([i for i, _ in part]), [c for _, c in part]) for scale, part in found.items()}


def table(classes: Sequence[str], rows: Iterable[tuple[str, Any, AgreementReport]]) -> str:
    """Markdown: one row for each set of images, by (name, guidance scale, report)."""
    lines = [f"| images | guidance scale | agree | {' | '.join(classes)} |", "| --- " * (3 + len(classes)) + "|"]
    for name, scale, report in rows:
        cells = [name, "" if scale is None else f"{scale:g}", str(report.overall)]
        lines.append(f"| {' | '.join([*cells, *(str(report.by_class[c]) for c in classes)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = sample_parser(__doc__, "bundles/chexpert_ldm")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the classifier")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parse(parser)
    torch.set_num_threads(args.threads)
    get = load_run(args).parser.get_parsed_content
    data, settings = get("data"), get("settings")

    def images_of(items: Sequence[dict[str, Any]]) -> tuple[Tensor, list[int]]:
        return read_images(data, items), [int(item["class_label"]) for item in items]

    training, held_out = images_of(data.train), images_of([*data.validation, *data.lists.test])
    start = time.perf_counter()
    classes = data.lists.classes  # in the order of the labels of its items
    judge = ClassAgreement(classes, steps=args.steps).fit(*training)
    seconds = time.perf_counter() - start
    rows: list[tuple[str, Any, AgreementReport]] = [("real, held out", None, judge.agreement(*held_out))]
    for folder in args.samples:
        parts = by_guidance(read_samples(folder, settings))
        rows += [(folder, scale, judge.agreement(*part)) for scale, part in parts.items()]
    print(
        f"Classifier: {len(training[0])} real training images, {args.steps} steps in {seconds:.0f} s; "
        f"AUROC {judge.auroc(*held_out):.3f} on {len(held_out[0])} held-out ones.\n"
    )
    print(table(classes, rows))


if __name__ == "__main__":
    main()
