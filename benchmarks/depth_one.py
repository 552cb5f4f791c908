"""Time of depth 1 beside a native 2D implementation of the same network with the same weights.

    python benchmarks/depth_one.py [--image 64] [--latent 16] [--channels 64] [--width 64] [--batch 2] [--threads 2]

Medfusion's autoencoder (deep supervision, Gaussian bottleneck) and its UNet, against ``tests/reference_2d.py``. Each
round times ours and the native network directly after one another, in changing order, so that other work on the machine
meets both alike. The table gives medians over the rounds and the median of the rounds' ratios; a step is forward, L1
loss, backward and Adam. The native network runs in the ``channels_last`` layout, its faster one.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import torch.nn.functional as F
from reference_2d import Autoencoder2d, UNet2d, copy_weights
from torch import Tensor, nn

from medical_diffusion.networks import Autoencoder, GaussianBottleneck, UNet

LATENT_CHANNELS = 8
WARM_UP = 2


def autoencoders(options: argparse.Namespace) -> tuple[nn.Module, nn.Module, Callable, Callable]:
    """Both networks, each with a function that gives its reconstructions."""
    ours = Autoencoder(
        (options.image, options.image, 1),
        channels=options.channels,
        compression=8,
        latent_channels=LATENT_CHANNELS,
        bottleneck=GaussianBottleneck(LATENT_CHANNELS),
        latent_normalization="standardize",
        padding_mode=options.padding_mode,
        architecture="medfusion",
        deep_supervision=True,
    )
    native = Autoencoder2d(1, options.channels, 3, LATENT_CHANNELS, padding_mode=options.padding_mode)
    x = torch.randn(options.batch, 1, options.image, options.image)
    flat = x.contiguous(memory_format=torch.channels_last)

    def run_ours() -> list[Tensor]:
        # the posterior's mean, as in the native network: the draw is not part of the comparison
        return ours.decode_all(ours.encode(x[..., None]))

    def run_native() -> list[Tensor]:
        return list(native(flat)[:2])

    return ours, native, run_ours, run_native


def unets(options: argparse.Namespace) -> tuple[nn.Module, nn.Module, Callable, Callable]:
    """Both networks, each with a function that gives its prediction."""
    multipliers = (1, 1, 2, 4)
    ours = UNet(
        LATENT_CHANNELS,
        width=options.width,
        channel_multipliers=multipliers,
        blocks_per_level=1,
        skip="add",
        spatial_attention="none",
        depth_attention=False,
        num_classes=2,
    )
    native = UNet2d(LATENT_CHANNELS, options.width, multipliers, num_classes=2)
    x = torch.randn(options.batch, LATENT_CHANNELS, options.latent, options.latent)
    flat = x.contiguous(memory_format=torch.channels_last)
    timesteps = torch.arange(options.batch)
    labels = timesteps % 3
    return (
        ours,
        native,
        lambda: [ours(x[..., None], timesteps, labels)],
        lambda: [native(flat, timesteps, labels)],
    )


def training_step(network: nn.Module, run: Callable[[], list[Tensor]]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        outputs = run()
        torch.stack([F.l1_loss(y, torch.ones_like(y)) for y in outputs]).sum().backward()
        optimizer.step()

    return step


def forward_pass(run: Callable[[], list[Tensor]]) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            run()

    return forward


def interleaved(ours: Callable[[], None], native: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios of the rounds."""
    times: dict[str, list[float]] = {"ours": [], "native": []}
    for index in range(WARM_UP + rounds):
        pair = [("ours", ours), ("native", native)]
        for name, work in pair if index % 2 else pair[::-1]:
            start = time.perf_counter()
            work()
            if index >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["native"], strict=True))
    return statistics.median(times["ours"]), statistics.median(times["native"]), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, default=64, help="height and width of the autoencoder's image")
    parser.add_argument("--latent", type=int, default=16, help="height and width of the UNet's latent")
    parser.add_argument("--channels", type=int, default=64, help="first width of the autoencoder")
    parser.add_argument("--width", type=int, default=64, help="first width of the UNet")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--padding_mode", choices=["replicate", "zeros"], default="replicate")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, batch {options.batch}, float32\n"
        f"autoencoder: image {options.image}², width {options.channels}, border {options.padding_mode}; "
        f"UNet: latent {LATENT_CHANNELS} x {options.latent}², width {options.width}\n\n"
        "| network | work | depth 1 | native 2D | ratio |\n|---|---|---|---|---|"
    )
    for name, build in (("autoencoder", autoencoders), ("UNet", unets)):
        torch.manual_seed(0)
        ours, native, run_ours, run_native = build(options)
        copy_weights(ours, native)
        native.to(memory_format=torch.channels_last)
        with torch.no_grad():
            for y, expected in zip(run_ours(), run_native(), strict=True):
                torch.testing.assert_close(y[..., 0], expected, atol=1e-5, rtol=1e-5)
        work = {
            "forward": (forward_pass(run_ours), forward_pass(run_native)),
            "training step": (training_step(ours, run_ours), training_step(native, run_native)),
        }
        for kind, pair in work.items():
            mine, theirs, ratio = interleaved(*pair, options.rounds)
            print(f"| {name} | {kind} | {1000 * mine:.0f} ms | {1000 * theirs:.0f} ms | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
