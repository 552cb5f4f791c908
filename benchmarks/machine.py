"""What a machine can do at this moment: the rate of a large matrix product, against which convolutions can be read.

A shared machine varies within the hour; a step that takes G GFLOP can not be faster than G over this rate.
"""

from __future__ import annotations

import statistics
import time

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
