"""The few collective operations that the training steps need; each does nothing in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether a process group with more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_main_process() -> bool:
    """Whether this process writes files and logs: rank 0, or the only process."""
    return not is_distributed() or dist.get_rank() == 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message.

    Call it on every rank with the same parameters, after the backward pass and before clipping. Parameters without a
    gradient on this rank count as zero, so that all ranks send messages of the same length.
    """
    if not is_distributed():
        return
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(mean.view(p.shape))  # type: ignore[union-attr]


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()
