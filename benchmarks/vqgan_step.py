"""Time and memory of a VQ-GAN training step, beside the same step written plainly and stock MONAI networks.

    python benchmarks/vqgan_step.py                                  # the two reference sizes
    python benchmarks/vqgan_step.py --image_size 128 128 128         # the paper's size: step and decode
    python benchmarks/vqgan_step.py --makers medical_diffusion       # without those beside it

Prints a Markdown table. Each row runs in a fresh process. Memory is the peak resident set above that of the imports.
``plain`` is ``plain_networks.py``: the same networks without this package's choices for speed, trained in two passes
that each run the autoencoder; it is measured first, and the ratio is the median over its median. MONAI's step is what
its tutorials do: a generator pass, then a discriminator pass over fresh forwards, volume and slice discriminator alike.
Its VQVAE has about as many parameters, but no residual blocks at full resolution, so it is much less work. The GFLOP
are those of the convolutions and matrix products of the whole step (or decode), and "of the matrix rate" is their rate
in the fastest one by that of one large matrix product at the start: at 100 % nothing but they would take time (CPU). On
a CPU the package keeps freed memory in the process, as every run of a bundle does; the others do not, as in a program
of their own. CPU seconds tell the cost on a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from machine import gflop_of, matrix_rate

SEED = 0
MAKERS = ("plain", "medical_diffusion", "monai")
NUM_CODES, LATENT_CHANNELS, CHANNELS = 16384, 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, nargs=3, metavar=("H", "W", "D"))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--compression", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7, help="measured steps, after --warmup")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="none", choices=["none", "bfloat16", "float16"])
    parser.add_argument("--makers", nargs="+", choices=MAKERS, default=list(MAKERS), help="whose networks to measure")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    common = {"repeats": args.repeats, "warmup": args.warmup, "threads": args.threads}
    common |= {"device": args.device, "amp": args.amp}
    if args.image_size:
        sizes = [(args.image_size, args.batch_size, args.compression)]
        works = ["step", "decode"]
    else:
        sizes, works = [([64, 64, 64], 1, 4), ([32, 32, 32], 2, 2)], ["step"]
    rate = matrix_rate(args.threads)
    print(
        f"{platform.machine()}, {args.threads} threads, {args.device}, amp {args.amp}, median of {args.repeats}, "
        f"matrix products at {rate:.0f} GFLOP/s\n"
    )
    columns = ["work", "size", "batch", "compression", "networks", "M weights", "GFLOP"]
    columns += ["median s", "best s", "CPU s", "peak GB", "median / plain", "of the matrix rate"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for size, batch, compression in sizes:
        for work in works:
            plain = None
            for maker in sorted(args.makers, key=MAKERS.index):
                row = {**common, "size": size, "batch": batch, "compression": compression, "work": work}
                result = run_row({**row, "maker": maker})
                cells = [work, "×".join(map(str, size)), batch, compression, maker]
                cells += [f"{result[name]:.2f}" for name in ("parameters", "gflop")]
                cells += [f"{result[name]:.2f}" for name in ("median", "fastest", "cpu", "memory_gb")]
                plain = result["median"] if maker == "plain" else plain
                cells.append(f"{result['median'] / plain:.2f}" if plain else "–")
                share = result["gflop"] / result["fastest"] / rate
                cells.append(f"{100 * share:.0f} %" if args.device == "cpu" else "–")
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def run_row(row: dict) -> dict:
    """One row in a process of its own, with the thread count set before torch is imported."""
    env = {**os.environ, "OMP_NUM_THREADS": str(row["threads"])}
    command = [sys.executable, os.path.abspath(__file__), "--row", json.dumps(row)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(row: dict) -> dict:
    """Time the work of a row and its peak memory above the imports."""
    import torch

    from medical_diffusion.training.allocator import keep_freed_memory
    from medical_diffusion.training.autoencoder_step import AutoencoderStep  # noqa: F401  (imported before the baseline)

    if row["maker"] == "monai":
        import monai.losses
        import monai.networks.nets  # noqa: F401
    elif row["maker"] == "plain":
        import plain_networks  # noqa: F401
    elif row["device"] == "cpu":
        keep_freed_memory()  # as every run of a bundle does

    torch.set_num_threads(row["threads"])
    torch.manual_seed(SEED)
    cuda = row["device"].startswith("cuda")
    base = resident_bytes()
    work = {"step": prepare_step, "decode": prepare_decode}[row["work"]](row)
    seconds, cpu_seconds = [], []
    for repeat in range(row["warmup"] + row["repeats"]):
        start, cpu_start = time.perf_counter(), time.process_time()
        work(repeat)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    seconds, cpu_seconds = seconds[row["warmup"] :], cpu_seconds[row["warmup"] :]
    peak = torch.cuda.max_memory_allocated() if cuda else peak_resident_bytes() - base
    return {
        "median": statistics.median(seconds),
        "fastest": min(seconds),
        "cpu": statistics.median(cpu_seconds),
        "memory_gb": peak / 1e9,
        "gflop": gflop_of(lambda: work(row["warmup"] + row["repeats"])),
        "parameters": parameters_of(row),
    }


def parameters_of(row: dict) -> float:
    """Millions of parameters of the autoencoder."""
    builders = {"plain": plain_autoencoder, "medical_diffusion": our_autoencoder, "monai": monai_vqvae}
    return sum(p.numel() for p in builders[row["maker"]](row).parameters()) / 1e6


def prepare_step(row: dict) -> Callable[[int], object]:
    import torch

    images = torch.rand(row["batch"], 1, *row["size"], device=row["device"]) * 2 - 1
    if row["maker"] == "monai":
        return monai_step(row, images)
    if row["maker"] == "plain":
        return plain_step(row, images)
    from medical_diffusion.networks import PatchDiscriminator
    from medical_diffusion.training.autoencoder_step import AutoencoderStep

    autoencoder = our_autoencoder(row)
    in_plane = (*row["size"][:2], 1)
    slice_d = PatchDiscriminator(in_plane).to(row["device"])
    volume_d = PatchDiscriminator(row["size"]).to(row["device"])
    adam = {"lr": 1e-4, "betas": (0.5, 0.9), "fused": True}
    step = AutoencoderStep(
        autoencoder,
        torch.optim.Adam(autoencoder.parameters(), **adam),
        slice_discriminator=slice_d,
        volume_discriminator=volume_d,
        discriminator_optimizer=torch.optim.Adam([*slice_d.parameters(), *volume_d.parameters()], **adam),
        discriminator_start=0,
        discriminator_warmup=0,
        amp=row["amp"],
    )
    return lambda repeat: step(images, repeat)


def our_autoencoder(row: dict):
    from medical_diffusion.networks import Autoencoder, VectorQuantizer

    quantizer = VectorQuantizer(NUM_CODES, LATENT_CHANNELS)
    return Autoencoder(row["size"], compression=row["compression"], bottleneck=quantizer).to(row["device"])


def plain_autoencoder(row: dict):
    from plain_networks import PlainAutoencoder

    return PlainAutoencoder(row["compression"], NUM_CODES, LATENT_CHANNELS, CHANNELS).to(row["device"])


def plain_step(row: dict, images) -> Callable[[int], object]:
    from plain_networks import PlainDiscriminator, PlainStep

    from medical_diffusion.precision import amp_dtype

    slice_d = PlainDiscriminator((*row["size"][:2], 1)).to(row["device"])
    volume_d = PlainDiscriminator(row["size"]).to(row["device"])
    step = PlainStep(plain_autoencoder(row), slice_d, volume_d, amp_dtype(row["amp"]))
    return lambda repeat: step(images)


def monai_vqvae(row: dict):
    """MONAI's VQVAE with as many levels, the decoder's widths and the same codebook."""
    from monai.networks.nets import VQVAE

    levels = row["compression"].bit_length() - 1
    return VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=[CHANNELS * 2 ** (level + 1) for level in range(levels)],
        num_res_channels=[CHANNELS * 2 ** (level + 1) for level in range(levels)],
        num_res_layers=2,
        downsample_parameters=[(2, 4, 1, 1)] * levels,
        upsample_parameters=[(2, 4, 1, 1, 0)] * levels,
        num_embeddings=NUM_CODES,
        embedding_dim=LATENT_CHANNELS,
    ).to(row["device"])


def monai_step(row: dict, images) -> Callable[[int], object]:
    import torch
    from monai.losses import PatchAdversarialLoss
    from monai.networks.nets import PatchDiscriminator

    from medical_diffusion.precision import amp_dtype

    generator = monai_vqvae(row)
    discriminators = [
        PatchDiscriminator(spatial_dims=dims, in_channels=1, channels=64, num_layers_d=3, norm="INSTANCE")
        for dims in (2, 3)
    ]
    for discriminator in discriminators:
        discriminator.to(row["device"])
    adversarial = PatchAdversarialLoss(criterion="hinge")
    optimizer = torch.optim.Adam(generator.parameters(), 1e-4, (0.5, 0.9))
    optimizer_d = torch.optim.Adam([p for d in discriminators for p in d.parameters()], 1e-4, (0.5, 0.9))
    dtype = amp_dtype(row["amp"])

    def run(repeat: int) -> None:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            reconstruction, commitment = generator(images)
            views = [(x[..., repeat], x) for x in (images, reconstruction)]
            loss = 4 * (reconstruction - images).abs().mean() + commitment
            for discriminator, real, fake in zip(discriminators, *views, strict=True):
                fake_maps = discriminator(fake.contiguous())
                with torch.no_grad():
                    real_maps = discriminator(real.contiguous())
                loss = loss + adversarial(fake_maps[-1], target_is_real=True, for_discriminator=False)
                for a, b in zip(fake_maps[:-1], real_maps[:-1], strict=True):
                    loss = loss + 4 * (a - b).abs().mean() / len(real_maps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        optimizer_d.zero_grad(set_to_none=True)
        for discriminator, real, fake in zip(discriminators, *views, strict=True):
            with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
                fake_logits = discriminator(fake.detach().contiguous())[-1]
                real_logits = discriminator(real.contiguous())[-1]
                loss_d = adversarial(fake_logits, target_is_real=False, for_discriminator=True)
                loss_d = loss_d + adversarial(real_logits, target_is_real=True, for_discriminator=True)
            loss_d.backward()
        torch.nn.utils.clip_grad_norm_([p for d in discriminators for p in d.parameters()], 1.0)
        optimizer_d.step()

    return run


def prepare_decode(row: dict) -> Callable[[int], object]:
    """Latent to image, quantisation included, as the sampler's last step does."""
    import torch

    latent = [n // row["compression"] for n in row["size"]]
    z = torch.randn(row["batch"], LATENT_CHANNELS, *latent, device=row["device"])
    if row["maker"] == "monai":
        network = monai_vqvae(row).eval()

        def decode(repeat: int) -> None:
            with torch.inference_mode():
                network.decode(network.quantize(z)[0])

        return decode
    if row["maker"] == "plain":
        plain = plain_autoencoder(row).eval()
        plain.bottleneck.codebook.normal_()

        def decode(repeat: int) -> None:
            with torch.inference_mode():
                plain.decode(z)

        return decode
    autoencoder = our_autoencoder(row).eval()
    quantizer = autoencoder.bottleneck
    quantizer.codebook.normal_()
    quantizer.codes_initialised.fill_(NUM_CODES)
    autoencoder.set_latent_statistics()

    def decode(repeat: int) -> None:
        with torch.inference_mode():
            autoencoder.decode_latents(z)

    return decode


def resident_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def peak_resident_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
