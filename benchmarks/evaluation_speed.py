"""Time and peak memory of the evaluation's metrics, and extraction rates, as Markdown.

    python benchmarks/evaluation_speed.py [--images 20000] [--features 2048] [--pairs 1000] [--size 64] [--threads 2]
        [--only precision_recall fid kid ms_ssim rate_2d rate_3d]

Random features for the distances, random images for MS-SSIM and for the extraction with the network ``random``: neither
time nor memory depends on the values. Each row is measured in a process of its own; peak memory is the process's, the
libraries (0.3 to 0.4 GB) and the features included. The second run of an extraction finds its features in the cache.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np

SEED = 0
RATE_IMAGES = {"rate_2d": 100, "rate_3d": 40}
SHAPES = {"rate_2d": (1, 256, 256, 1), "rate_3d": (1, 64, 64, 64)}
GIGABYTE = 1e9


def features(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(SEED)
    shape = (options.images, options.features)
    return generator.standard_normal(shape, np.float32), generator.standard_normal(shape, np.float32)


def precision_recall(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    from medical_diffusion.evaluation.distances import precision_recall_density_coverage

    real, synthetic = features(options)
    start = time.perf_counter()
    precision_recall_density_coverage(real, synthetic)
    yield f"precision, recall, density, coverage of {named(options)}", time.perf_counter() - start


def fid(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    from medical_diffusion.evaluation import distances

    real, synthetic = features(options)
    start = time.perf_counter()
    distances.fid(real, synthetic)
    yield f"FID of {named(options)}", time.perf_counter() - start


def kid(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    from medical_diffusion.evaluation import distances

    real, synthetic = features(options)
    start = time.perf_counter()
    distances.kid(real, synthetic)
    yield f"KID of {named(options)}, 100 subsets of 1000", time.perf_counter() - start


def ms_ssim(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    import torch

    from medical_diffusion.evaluation.diversity import ms_ssim_diversity

    size = [options.size] * 3
    volumes = torch.rand(50, 1, *size) * 2 - 1
    start = time.perf_counter()
    ms_ssim_diversity(volumes, options.pairs)
    yield f"MS-SSIM of {options.pairs} pairs, {' x '.join(map(str, size))}", time.perf_counter() - start


def rate(name: str) -> Iterator[tuple[str, float]]:
    import torch

    from medical_diffusion.evaluation.features import create_extractor, extract_features

    class Images:
        """Made when asked for: what is measured is the extractor."""

        def __init__(self) -> None:
            self.keys = [f"{n:064d}" for n in range(RATE_IMAGES[name])]

        def __len__(self) -> int:
            return len(self.keys)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(SHAPES[name], generator=torch.Generator().manual_seed(index)) * 2 - 1

    extractor = create_extractor("random", 2 if SHAPES[name][-1] == 1 else 3)
    size = " x ".join(str(n) for n in SHAPES[name][1:] if n > 1)
    with tempfile.TemporaryDirectory() as cache:
        for run in ("extraction", "second run"):
            start = time.perf_counter()
            extract_features(Images(), extractor, cache)
            seconds = time.perf_counter() - start
            per_second = RATE_IMAGES[name] / seconds
            yield f"{run}, `random`, {RATE_IMAGES[name]} images of {size}: {per_second:.0f} a second", seconds


def named(options: argparse.Namespace) -> str:
    return f"2 x {options.images} x {options.features}"


WORK = {
    "precision_recall": precision_recall,
    "fid": fid,
    "kid": kid,
    "ms_ssim": ms_ssim,
    "rate_2d": lambda options: rate("rate_2d"),
    "rate_3d": lambda options: rate("rate_3d"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--row", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        import torch

        torch.set_num_threads(options.threads)
        for label, seconds in WORK[options.row](options):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE  # kilobytes on Linux
            print(f"| {label} | {seconds:.1f} | {peak:.2f} |", flush=True)
        return
    from machine import matrix_rate

    print(
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads "
        f"({matrix_rate(options.threads):.0f} GFLOP/s), torch {version('torch')}, numpy {version('numpy')}\n"
    )
    print("| work | seconds | peak memory, GB |\n|---|---|---|", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OPENBLAS_NUM_THREADS": str(options.threads)}
    for name in options.only:
        subprocess.run(
            [sys.executable, *sys.argv, "--row", name], env=environment, stderr=subprocess.DEVNULL, check=True
        )


if __name__ == "__main__":
    main()
