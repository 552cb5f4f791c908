"""Stage 2 from the latent cache beside the bare UNet step and beside encoding at every step; prints a Markdown table.

    python benchmarks/cached_step.py [--image_size 64 64 64] [--batch 2] [--width 32] [--volumes 8] [--runs 15]

Random volumes are encoded once into a cache on disk, as training does. Then three kinds of step take turns, so that a
noisy machine disturbs them alike, and medians are compared:

- bare: noise, forward, L1, backward, clipping and fused Adam on one batch that stays in memory;
- from cache: the loader reads the batch from the cache, then the whole step of training, moving average included;
- encoding: the autoencoder encodes the batch first, as latent diffusion without a cache does.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from importlib.metadata import version

SEED = 0
LATENT_CHANNELS, NUM_CODES = 8, 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, nargs=3, default=[64, 64, 64], metavar=("H", "W", "D"))
    parser.add_argument("--compression", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()

    import torch

    from medical_diffusion.data import LatentDataset, StepLoader
    from medical_diffusion.diffusion import create_sampler
    from medical_diffusion.networks import Autoencoder, UNet, VectorQuantizer
    from medical_diffusion.training import DiffusionStep
    from medical_diffusion.training.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    size = tuple(options.image_size)
    autoencoder = Autoencoder(
        size,
        compression=options.compression,
        latent_channels=LATENT_CHANNELS,
        bottleneck=VectorQuantizer(NUM_CODES, LATENT_CHANNELS),
    )
    volumes = [{"image": torch.rand(1, *size) * 2 - 1} for _ in range(options.volumes)]
    autoencoder.reconstruct(torch.stack([v["image"] for v in volumes[: options.batch]]))
    autoencoder.set_latent_statistics()
    autoencoder.eval()
    network = UNet(LATENT_CHANNELS, width=options.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    step = DiffusionStep(network, optimizer, create_sampler("ddpm"))

    with tempfile.TemporaryDirectory() as cache:
        latents = LatentDataset(volumes, autoencoder, cache, "benchmark")  # type: ignore[arg-type]
        latents.build()
        batches = iter(StepLoader(latents, options.batch, SEED))
        fixed = next(batches)["image"]
        images = torch.stack([v["image"] for v in volumes[: options.batch]])

        def bare() -> None:
            optimizer.zero_grad(set_to_none=True)
            noise, timesteps = step.draw(fixed)
            step.loss(network, fixed, noise, timesteps).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), step.max_gradient_norm)
            optimizer.step()

        def from_cache() -> None:
            step(next(batches)["image"], 0)

        def encoding() -> None:
            with torch.no_grad():
                z = autoencoder.encode_latents(images)
            step(z, 0)

        seconds: dict[str, list[float]] = {"bare": [], "from cache": [], "encoding": []}
        for run in range(options.runs + 2):
            for times, work in zip(seconds.values(), (bare, from_cache, encoding), strict=True):
                start = time.perf_counter()
                work()
                if run > 1:
                    times.append(time.perf_counter() - start)

    print(
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads, torch {version('torch')}, "
        f"volumes {' x '.join(map(str, size))}, compression {options.compression}, batch {options.batch}, "
        f"UNet width {options.width}, float32\n"
    )
    print("| step | median s | best s | over the bare step |")
    print("|---|---|---|---|")
    bare_median = statistics.median(seconds["bare"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {median:.3f} | {min(times):.3f} | {median / bare_median:.3f} |")


if __name__ == "__main__":
    main()
