"""Time and memory of one UNet training step and one forward pass, beside the paper's UNet written plainly and MONAI's.

    python benchmarks/unet_step.py [--size 16 16 16] [--batch 2] [--width 32] [--channels 8] [--threads 2] [--runs 15]
                                   [--networks plain linear full monai monai_attention]

Prints a Markdown table. Each network runs in a process of its own, so that its peak memory is its own: the highest
resident size above that after the imports. A step is forward, L1 loss, backward and Adam, fused but for the plain
network; a forward pass is in eval mode without gradients. Times are medians over the runs, the fastest run in brackets,
after a warm-up, in float32. The ratios are these medians over those of the plain network (``plain_networks.py``: the
paper's UNet, "linear" without the package's choices for speed and its depth embedding), which runs first. The last
column is the rate of convolutions and matrix products in the fastest run by that of one large matrix product at the
start: at 100 % nothing but they would take time. The package's networks keep freed memory in the process, as every run
of a bundle does; the others do not, as in a program of their own.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

from machine import gflop_of, matrix_rate

NETWORKS = {
    "plain": "the paper's UNet written plainly, linear spatial attention",
    "linear": "UNet, linear spatial attention",
    "full": "UNet, full spatial attention",
    "monai": "MONAI DiffusionModelUNet, attention on the coarsest level",
    "monai_attention": "MONAI DiffusionModelUNet, attention on every level",
}
MODULES = {
    "plain": "plain_networks",
    "linear": "medical_diffusion.networks.unet",
    "full": "medical_diffusion.networks.unet",
    "monai": "monai.networks.nets",
    "monai_attention": "monai.networks.nets",
}
OURS = ("linear", "full")
WARM_UP = 3


def build(name: str, channels: int, width: int):
    """A network with ``(x, timesteps)`` as its inputs."""
    if name.startswith("monai"):
        from monai.networks.nets import DiffusionModelUNet

        # three levels of 1, 2, 4 widths: with 3 x 3 x 3 kernels the configuration nearest in parameters (10.3 M at
        # width 32); its attention is full attention over the whole volume
        return DiffusionModelUNet(
            spatial_dims=3,
            in_channels=channels,
            out_channels=channels,
            num_res_blocks=2,
            channels=(width, 2 * width, 4 * width),
            attention_levels=(name == "monai_attention",) * 2 + (True,),
            num_head_channels=32,
            norm_num_groups=8,
        )
    if name == "plain":
        from plain_networks import PlainUNet

        return PlainUNet(channels, width)
    from medical_diffusion.networks.unet import UNet

    return UNet(in_channels=channels, width=width, spatial_attention=name)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Median and least seconds of a forward pass and of a step, parameters, peak memory above the imports."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    importlib.import_module(MODULES[name])
    if name in OURS:
        from medical_diffusion.training.allocator import keep_freed_memory

        keep_freed_memory()
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network = build(name, options.channels, options.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=name != "plain")
    height, width, depth = options.size
    size = (depth, height, width) if name == "plain" else (height, width, depth)
    x, noise = torch.randn(2, options.batch, options.channels, *size)
    timesteps = torch.arange(options.batch)

    def forward() -> None:
        network.eval()
        with torch.no_grad():
            network(x, timesteps)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(network(x, timesteps), noise).backward()
        optimizer.step()

    numbers: dict[str, float] = {"parameters": sum(p.numel() for p in network.parameters())}
    for work in (forward, step):
        seconds = []
        for _ in range(WARM_UP + options.runs):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        numbers[work.__name__] = statistics.median(seconds[WARM_UP:])
        numbers[f"{work.__name__}_least"] = min(seconds[WARM_UP:])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        numbers[f"{work.__name__}_memory"] = (peak - imports) / 1024**2
    numbers["forward_gflop"], numbers["step_gflop"] = gflop_of(forward), gflop_of(step)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[16, 16, 16], help="height, width and depth of the latent")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--measure", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return

    from importlib.metadata import version

    rate = matrix_rate(options.threads)
    allocator = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "THP_MEM"))}
    print(
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}, torch {version('torch')}, monai {version('monai')}, "
        f"allocator settings {allocator or 'none'}\n"
        f"latent {options.channels} x {' x '.join(map(str, options.size))}, batch {options.batch}, "
        f"width {options.width}, float32, matrix products at {rate:.0f} GFLOP/s\n"
    )
    columns = ["network", "parameters", "GFLOP, forward / step", "forward", "training step"]
    columns += ["memory, forward", "memory, step", "forward / plain", "step / plain", "of the matrix rate"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    plain: dict[str, float] = {}
    for name in sorted(options.networks, key=list(NETWORKS).index):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        n = json.loads(done.stdout.splitlines()[-1])
        if name == "plain":
            plain = n
        works = ("forward", "step")
        ratios = [f"{n[work] / plain[work]:.2f}" if plain else "–" for work in works]
        shares = [f"{100 * n[f'{work}_gflop'] / n[f'{work}_least'] / rate:.0f} %" for work in works]
        print(
            f"| {NETWORKS[name]} | {n['parameters'] / 1e6:.1f} M | {n['forward_gflop']:.1f} / {n['step_gflop']:.1f} "
            f"| {n['forward']:.3f} s ({n['forward_least']:.3f}) | {n['step']:.3f} s ({n['step_least']:.3f}) "
            f"| {n['forward_memory']:.2f} GB | {n['step_memory']:.2f} GB "
            f"| {' | '.join(ratios)} | {' / '.join(shares)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
