"""Time and memory of a pre-training and a fine-tuning step beside plain steps of the same network.

    python benchmarks/swin_steps.py [--sizes 64 96] [--features 12 24 48] [--batch 1] [--threads 2] [--runs 7]
                                    [--device cpu] [--steps monai plain masked paper finetune] [--window 7]

Prints a Markdown table. `MONAI` and `plain` are forward, L1 loss, backward and fused AdamW, on MONAI's class in the
default layout and on this package's, which runs channels-last; `masked` and `paper` are the step of the pre-training
bundle: drawing masks, hiding, flips, the objective's loss, clipping. What the pretext task costs is their time beside
`plain`. `finetune` is the step of the fine-tuning bundle, Dice and cross-entropy of two classes. Each runs in a process
of its own, so that its peak memory is its own: the highest resident size above that after the imports, or on a GPU the
most that was allocated. The processes take turns, a step each: a machine that slows down slows all of them. Times are
medians after a warm-up, the fastest run in brackets, in float32; what is beside them are medians of the ratios within a
turn. The last columns are volumes a second: of the step, and of the loader in one process that gives crops of that size
from cached volumes; for `finetune` with label maps and the TorchIO augmentation. MONAI's class takes sizes from 64 on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from machine import matrix_rate

STEPS = {
    "monai": "MONAI SwinUNETR",
    "plain": "plain",
    "masked": "pre-training, masked",
    "paper": "pre-training, paper",
    "finetune": "fine-tuning",
}
BASELINES = ("monai", "plain")
CLASSES = 2
WARM_UP = 1
LOADED = 32
VOLUMES = 4


def serve(name: str, size: int, feature: int, options: argparse.Namespace) -> None:
    """Answer each line of the input by a step, with its seconds; at the end with memory in GB and the loader's rate."""
    import torch
    from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

    from medical_diffusion.networks import SwinUNETR
    from medical_diffusion.training import PretrainStep, SegmentationStep, pretext_objective

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shape = (size, size, size)
    x = torch.randn(options.batch, 1, *shape).tanh().to(device)
    labels = torch.randint(CLASSES + 1, x.shape).to(device)
    if name == "monai":
        network = MonaiSwinUNETR(1, 1, feature_size=feature, window_size=options.window).to(device)
    else:
        channels = CLASSES + 1 if name == "finetune" else 1
        network = SwinUNETR(shape, 1, channels, feature, window_size=options.window).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    trained = None
    if name == "finetune":
        trained = SegmentationStep(network, optimizer)
    elif name not in BASELINES:
        trained = PretrainStep(network, shape, optimizer, pretext_objective(name))

    def step(number: int) -> None:
        if trained is None:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.l1_loss(network(x), x).backward()
            optimizer.step()
        elif name == "finetune":
            trained(x, number, labels=labels)
        else:
            trained(x, number)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for number, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        step(number)
        print(time.perf_counter() - start, flush=True)
    numbers = {"memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports) / 1024**2}
    if device.type == "cuda":
        numbers["memory"] = torch.cuda.max_memory_allocated() / 1024**3
    if name not in BASELINES:
        rate = labelled_loading_rate if name == "finetune" else loading_rate
        numbers["loading"] = rate(size, options.batch)
    print(json.dumps(numbers))


def take_turns(size: int, feature: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of each kind of step the ``seconds`` of every turn after the warm-up, ``memory`` and ``loading``."""
    command = [sys.executable, __file__, *sys.argv[1:], "--serve", str(size), str(feature)]
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for name in options.steps
        }
        turns = [
            {name: float(_asked(process, "step\n")) for name, process in processes.items()}
            for _ in range(WARM_UP + options.runs)
        ]
        return {
            name: {"seconds": [turn[name] for turn in turns[WARM_UP:]], **json.loads(process.communicate()[0])}
            for name, process in processes.items()
        }


def _asked(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a step failed: {' '.join(map(str, process.args))}")
    return answer


def loading_rate(size: int, batch: int) -> float:
    """Crops a second from volumes of 1.5 times their size that preprocessing has cached on disk."""
    import torch
    from monai.transforms import Compose

    from medical_diffusion.data import SafePersistentDataset
    from medical_diffusion.data.unlabelled_crops import UnlabelledCrops

    whole = size * 3 // 2
    with tempfile.TemporaryDirectory() as folder:
        items = [{"image": torch.randn(1, whole, whole, whole)} for _ in range(VOLUMES)]
        return crops_a_second(UnlabelledCrops(SafePersistentDataset(items, Compose([]), folder), size), batch)


def labelled_loading_rate(size: int, batch: int) -> float:
    """Augmented crops a second with their label maps, from volumes of 1.5 times their size in memory."""
    import torch

    from medical_diffusion.data import CropDataset, SegmentationAugmentation

    whole = size * 3 // 2
    items = []
    for _ in range(VOLUMES):
        label = torch.randint(CLASSES + 1, (1, whole, whole, whole), dtype=torch.uint8)
        places = label[0].nonzero()[:: whole * whole]
        classes = label[0][tuple(places.T)].int()[:, None]
        foreground = torch.cat([classes, places.int()], dim=1)
        image = torch.randn(1, whole, whole, whole).tanh()
        items.append({"image": image, "label": label, "foreground": foreground, "spacing": torch.ones(3)})
    return crops_a_second(CropDataset(items, size, augmentation=SegmentationAugmentation()), batch)


def crops_a_second(dataset: object, batch: int) -> float:
    """Crops that one process of the loader gives in a second, once all volumes were read."""
    from medical_diffusion.data import StepLoader

    batches = iter(StepLoader(dataset, batch, positions=True))
    for _ in range(VOLUMES):
        next(batches)
    start = time.perf_counter()
    for _ in range(LOADED // batch):
        next(batches)
    return LOADED // batch * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help="voxels along each axis")
    parser.add_argument("--features", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--window", type=int, default=7, help="side of the attention windows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        size, feature, name = options.serve
        serve(name, int(size), int(feature), options)
        return

    from importlib.metadata import version

    rate = f", matrix products at {matrix_rate(options.threads):.0f} GFLOP/s" if options.device == "cpu" else ""
    print(
        f"{datetime.date.today()}, {device_name(options.device)}, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}, torch {version('torch')}, monai {version('monai')}\n"
        f"batch {options.batch}, window {options.window}, float32{rate}\n"
    )
    columns = ("size", "feature size", "step", "time", "beside MONAI", "beside plain", "memory", "trained", "loaded")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for size in options.sizes:
        for feature in options.features:
            found = take_turns(size, feature, options)
            for place, (name, n) in enumerate(found.items()):
                before = {other: found[other] for other in list(found)[:place]}
                beside = " | ".join(relative(n, before.get(other)) for other in BASELINES)
                loaded = f"{n['loading']:.1f}" if "loading" in n else ""
                seconds = statistics.median(n["seconds"])
                print(
                    f"| {size}³ | {feature} | {STEPS[name]} | {seconds:.3f} s ({min(n['seconds']):.3f}) | {beside} "
                    f"| {n['memory']:.2f} GB | {options.batch / seconds:.2f} | {loaded} |",
                    flush=True,
                )


def relative(step: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    """How much longer than a baseline; nothing where there is none."""
    if baseline is None:
        return ""
    ratios = [own / other for own, other in zip(step["seconds"], baseline["seconds"], strict=True)]
    return f"{100 * (statistics.median(ratios) - 1):+.0f} %"


def device_name(device: str) -> str:
    """The processor or the GPU."""
    if device == "cpu":
        return platform.machine()
    import torch

    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    main()
