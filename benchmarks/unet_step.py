"""Time and memory of one UNet training step and one forward pass, beside MONAI's DiffusionModelUNet of like size.

    python benchmarks/unet_step.py [--size 16 16 16] [--batch 2] [--width 32] [--channels 8] [--threads 2] [--runs 15]

Prints a Markdown table. Each network runs in a process of its own, so that its peak memory is its own: the highest
resident size above that after the imports. A step is forward, L1 loss, backward and fused Adam; a forward pass is in
eval mode without gradients. Times are medians over the runs, the fastest run in brackets, after a warm-up, in float32.
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

from machine import matrix_rate

NETWORKS = {
    "linear": "UNet, linear spatial attention",
    "full": "UNet, full spatial attention",
    "monai": "MONAI DiffusionModelUNet, attention on the coarsest level",
    "monai_attention": "MONAI DiffusionModelUNet, attention on every level",
}
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
    from medical_diffusion.networks.unet import UNet

    return UNet(in_channels=channels, width=width, spatial_attention=name)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Median and least seconds of a forward pass and of a step, parameters, peak memory above the imports."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    importlib.import_module("monai.networks.nets" if name.startswith("monai") else "medical_diffusion.networks.unet")
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network = build(name, options.channels, options.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    x, noise = torch.randn(2, options.batch, options.channels, *options.size)
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
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward()
    numbers["gflop"] = counter.get_total_flops() / 1e9
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

    allocator = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "THP_MEM"))}
    print(
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}, torch {version('torch')}, monai {version('monai')}, "
        f"allocator settings {allocator or 'none'}\n"
        f"latent {options.channels} x {' x '.join(map(str, options.size))}, batch {options.batch}, "
        f"width {options.width}, float32, matrix products at {matrix_rate(options.threads):.0f} GFLOP/s\n"
    )
    print("| network | parameters | GFLOP, forward | forward | training step | memory, forward | memory, step |")
    print("|---|---|---|---|---|---|---|")
    for name in options.networks:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
        n = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(
            f"| {NETWORKS[name]} | {n['parameters'] / 1e6:.1f} M | {n['gflop']:.1f} "
            f"| {n['forward']:.3f} s ({n['forward_least']:.3f}) | {n['step']:.3f} s ({n['step_least']:.3f}) "
            f"| {n['forward_memory']:.2f} GB | {n['step_memory']:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
