"""Is loading ever the bottleneck? Preprocessing of a bundle's volumes, cached and not, beside its training step.

    python benchmarks/preprocessing_rate.py --bundle bundles/duke_ldm [--dataset_dir DATA] [--volumes 8] [--name value]

Each volume is read three times from an empty cache: preprocessed and written, then read back twice. The training step
is that of stage 1 with the bundle's networks and options. Further options are those of ``train.json``; without a data
set the volumes are phantoms. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import matrix_rate
from monai.bundle import ConfigWorkflow


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options go to train.json: --name value.",
    )
    parser.add_argument("--bundle", required=True, help="folder of the bundle")
    parser.add_argument("--dataset_dir")
    parser.add_argument("--volumes", type=int, default=8, help="volumes that are timed")
    parser.add_argument("--steps", type=int, default=2, help="measured training steps, after one for warming up")
    args, args.options = parser.parse_known_args()
    return args


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    args = arguments()
    options: dict[str, Any] = dict(zip((o[2:] for o in args.options[::2]), args.options[1::2], strict=True))
    if args.dataset_dir:
        options["dataset_dir"] = args.dataset_dir
    config = Path(args.bundle) / "configs" / "train.json"
    with tempfile.TemporaryDirectory() as run_dir:
        flow = ConfigWorkflow(
            str(config), workflow_type="train", logging_file=False, run_dir=run_dir, device="cpu", **options
        )
        flow.initialize()
        get = flow.parser.get_parsed_content
        settings, dataset, step = get("settings"), get("autoencoder#dataset"), get("autoencoder#step")
        numbers = range(min(args.volumes, len(dataset)))
        passes = [[seconds(lambda n=n: dataset[n]) for n in numbers] for _ in range(3)]  # type: ignore[misc]
        batch = torch.stack([torch.as_tensor(dataset[n % len(dataset)]["image"]) for n in range(settings.batch_size)])
        late = settings.autoencoder_steps - 1  # with the discriminators
        times = [seconds(lambda: step(batch, late)) for _ in range(args.steps + 1)]
    threads = torch.get_num_threads()
    size = " × ".join(map(str, settings.image_size))
    loading = statistics.median(passes[2]) * settings.batch_size
    stepping = statistics.median(times[1:])
    print(f"{matrix_rate(threads):.0f} GFLOP/s in matrix products, {threads} threads\n")
    print(
        "| bundle | size | batch | preprocessing, s a volume | from the cache, s a volume | step, s | loading by step |"
    )
    print("| --- " * 7 + "|")
    print(
        f"| {Path(args.bundle).name} | {size} | {settings.batch_size} | {statistics.median(passes[0]):.3f} | "
        f"{statistics.median(passes[2]):.4f} | {stepping:.2f} | {loading / stepping:.4f} |"
    )


if __name__ == "__main__":
    main()
