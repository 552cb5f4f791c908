"""Keep freed memory in the process: on Linux, glibc returns large blocks to the system after every pass and the next
pass pays a page fault for each 4 KiB of them (31 000 faults in one forward pass of the UNet on two cores; 100 without).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of ``mallopt`` in glibc's ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large freed blocks; returns whether it is there and agreed. Call before large allocations."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 2**30), (M_TOP_PAD, 2**26))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
