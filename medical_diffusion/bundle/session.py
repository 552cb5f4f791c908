"""The beginning and the end of a run: messages instead of tracebacks, processes, devices, reproducible networks."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from medical_diffusion.bundle import hook
from medical_diffusion.bundle.context import config_item, reject_unknown_overrides
from medical_diffusion.bundle.settings import Settings
from medical_diffusion.errors import UserError
from medical_diffusion.training import StepTrainer
from medical_diffusion.training.allocator import keep_freed_memory
from medical_diffusion.training.distributed import is_main_process

LONGEST_WAIT = timedelta(hours=12)
"""For the first process, which reads and preprocesses all volumes: ten minutes, the default, end large data sets."""
PACKAGE_LOGGER = "medical_diffusion"
TRACKING_KEY = "tracking_uri"
SAMPLER_STEPS = {"ddpm": None, "ddim": 150, "dpmpp": 20}


def begin(distributed: bool = False) -> None:
    """First expression of every configuration: error messages, logging, checks of the overrides, processes.

    Args:
        distributed: join the process group that ``torchrun`` described.
    """
    hook.install()
    keep_freed_memory()
    _log_plainly()
    if distributed and not dist.is_initialized():
        if "RANK" not in os.environ:
            raise UserError(
                "multi_gpu_train.json is an overlay for torchrun",
                "no RANK in the environment",
                "Start it with: torchrun --nproc_per_node N -m monai.bundle run --config_file \"['train.json', "
                "'multi_gpu_train.json']\"",
            )
        dist.init_process_group("nccl" if process_device() != "cpu" else "gloo", timeout=LONGEST_WAIT)
    reject_unknown_overrides()


def end() -> None:
    """Last expression of a training configuration: leave the process group."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def process_device() -> str:
    """The device of this ``torchrun`` process: its own GPU where there are enough, else the CPU."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return f"cuda:{rank}" if torch.cuda.device_count() > rank else "cpu"


def set_threads(count: int | None) -> None:
    """Let PyTorch compute with ``count`` CPU threads; None leaves its own number."""
    if count is not None:
        torch.set_num_threads(count)


def seed_networks(seed: int) -> None:
    """Seed what the expressions that follow will draw: the first weights of every network, alike on all processes."""
    torch.manual_seed(seed)


def to_device(device: torch.device, *networks: nn.Module | None) -> None:
    """Move the networks that are there."""
    for network in networks:
        if network is not None:
            network.to(device)


def parameters_of(*networks: nn.Module | None) -> list[nn.Parameter]:
    """Parameters of the networks that are there."""
    return [p for network in networks if network is not None for p in network.parameters()]


def share_of(fraction: float, steps: int) -> int:
    """A warm-up that scales with the run, in steps."""
    return round(fraction * steps)


def sampler_steps(settings: Settings) -> int | None:
    """``num_steps``, or each sampler's own default: all timesteps for ddpm, few for the solvers."""
    steps = settings.num_steps or SAMPLER_STEPS[settings.sampler]
    return None if steps is None else min(steps, settings.timesteps) if settings.num_steps is None else steps


def require_finished(trainer: StepTrainer) -> None:
    """Load stage 1 for a run of stage 2 alone.

    Raises:
        UserError: it was not trained to its end with this configuration.
    """
    progress = trainer.checkpoint.peek()
    if progress is None or progress.step < trainer.total_steps:
        done = 0 if progress is None else progress.step
        raise UserError(
            "stage 2 needs a finished autoencoder of this configuration",
            f"{done} of {trainer.total_steps} steps in {trainer.checkpoint.weights_path.parent}",
            "Run train_autoencoder.json with the same options first",
        )
    trainer.run()


def tracking_requested() -> bool:
    """Whether ``--tracking mlflow`` was given."""
    return config_item(TRACKING_KEY) is not None and is_main_process()


def tracking_uri() -> Any:
    """Where MLflow writes, as MONAI's own handler resolves it; None without tracking."""
    from medical_diffusion.bundle.context import running_parser

    parser = running_parser()
    return parser.get_parsed_content(TRACKING_KEY) if parser is not None and tracking_requested() else None


def _log_plainly() -> None:
    """Plain lines on standard output for our own messages; warnings of libraries that say nothing to a user are off."""
    package = logging.getLogger(PACKAGE_LOGGER)
    if not package.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
    package.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    package.propagate = False
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
