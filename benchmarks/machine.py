"""What a machine can do at this moment, and what a step asks of it.

A shared machine varies within the hour. A step whose products take G GFLOP is not faster than G over the rate of a
large matrix product, however well it is written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

SIZE = 2048
REPEATS = 5


def matrix_rate(threads: int) -> float:
    """Median GFLOP/s of a float32 product of two 2048 x 2048 matrices on the CPU with ``threads`` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a = torch.randn(SIZE, SIZE)
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2e-9 * SIZE**3 / statistics.median(seconds[1:])


def gflop_of(work: Callable[[], object]) -> float:
    """Multiplications and additions of the convolutions and matrix products, forward and backward, in one call.

    Those of ``torch.utils.flop_counter``, counted where operations are dispatched: its own context counts by module and
    refuses ``torch.autograd.grad`` at a leaf, which an adaptive loss weight calls.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            result = operation(*args, **kwargs)
            count = flop_registry.get(operation._overloadpacket)
            if count is not None:
                self.total += count(*args, **kwargs, out_val=result)
            return result

    with Counter() as counter:
        work()
    return counter.total / 1e9
