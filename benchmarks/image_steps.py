"""Time and memory of one Medfusion step of each stage, and of drawing one image, at the paper's sizes.

    python benchmarks/image_steps.py [--sizes 256 512] [--channels 1] [--batch 1] [--threads 2] [--runs 2]

The networks are those of ``chexpert_ldm`` with its paper profile: KL autoencoder of compression 8 with deep supervision
and the slice discriminator, UNet of width 256. Each row runs in a process of its own; memory is the peak resident size
above that after the imports. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

from machine import matrix_rate

COMPRESSION, LATENT_CHANNELS, WIDTH, MULTIPLIERS = 8, 8, 256, (1, 1, 2, 4)
WORKS = ("autoencoder step", "UNet step", "sampling step with guidance", "decoding")


def prepare(work: str, size: int, channels: int, batch: int) -> Callable[[int], object]:
    import torch

    from medical_diffusion.diffusion import ClassifierFreeGuidance, create_sampler
    from medical_diffusion.losses import SpectralLoss, StructuralLoss
    from medical_diffusion.networks import Autoencoder, GaussianBottleneck, PatchDiscriminator, UNet
    from medical_diffusion.training import AutoencoderStep, DiffusionStep

    image_size, latent_size = (size, size, 1), (size // COMPRESSION, size // COMPRESSION, 1)
    if work in ("autoencoder step", "decoding"):
        autoencoder = Autoencoder(
            image_size,
            in_channels=channels,
            channels=64,
            compression=(COMPRESSION, COMPRESSION, 1),
            latent_channels=LATENT_CHANNELS,
            bottleneck=GaussianBottleneck(LATENT_CHANNELS),
            architecture="medfusion",
            deep_supervision=True,
            latent_normalization="standardize",
        )
        if work == "decoding":
            autoencoder.eval().requires_grad_(False)
            z = torch.randn(batch, LATENT_CHANNELS, *latent_size)
            return lambda step: autoencoder.decode(z)
        judge = PatchDiscriminator(image_size, channels)
        step = AutoencoderStep(
            autoencoder,
            torch.optim.Adam(autoencoder.parameters(), lr=1e-4, fused=True),
            judge,
            discriminator_optimizer=torch.optim.Adam(judge.parameters(), lr=1e-4, fused=True),
            structural_loss=StructuralLoss("ssim"),
            spectral_loss=SpectralLoss(),
            discriminator_start=0,
            discriminator_warmup=0,
        )
        images = torch.rand(batch, channels, *image_size) * 2 - 1
        return lambda number: step(images, number)
    network = UNet(
        LATENT_CHANNELS,
        width=WIDTH,
        channel_multipliers=MULTIPLIERS,
        blocks_per_level=1,
        middle=False,
        skip="add",
        spatial_attention="none",
        depth_attention=False,
        num_classes=2,
    )
    sampler = create_sampler("ddim", num_train_timesteps=1000, schedule="scaled_linear")
    latents, labels = torch.randn(batch, LATENT_CHANNELS, *latent_size), torch.zeros(batch, dtype=torch.long)
    if work == "UNet step":
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        diffusion = DiffusionStep(network, optimizer, sampler, label_dropout=0.5)
        return lambda number: diffusion(latents, number, labels)
    guided = ClassifierFreeGuidance(network.eval().requires_grad_(False), labels, 2.0, null_label=2)
    return lambda number: sampler.sample(guided, latents, num_steps=1)


def measure(row: dict) -> dict[str, float]:
    import torch

    from medical_diffusion.training.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(row["threads"])
    torch.manual_seed(0)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = prepare(row["work"], row["size"], row["channels"], row["batch"])
    seconds = []
    for number in range(row["runs"] + 1):
        start = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"median": statistics.median(seconds[1:]), "memory": (peak - imports) / 1024**2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2, help="measured runs, after one for warming up")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    print(
        f"{datetime.date.today()}, {platform.machine()}, {args.threads} threads, torch {version('torch')}, float32, "
        f"batch {args.batch}, {args.channels} channels, matrix products at {matrix_rate(args.threads):.0f} GFLOP/s\n"
    )
    print("| size | work | median s | peak GB |")
    print("|---|---|---|---|")
    for size in args.sizes:
        for work in WORKS:
            row = {"work": work, "size": size, "channels": args.channels, "batch": args.batch}
            row |= {"threads": args.threads, "runs": args.runs}
            command = [sys.executable, __file__, "--row", json.dumps(row)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            n = json.loads(done.stdout.splitlines()[-1])
            print(f"| {size} x {size} | {work} | {n['median']:.2f} | {n['memory']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
