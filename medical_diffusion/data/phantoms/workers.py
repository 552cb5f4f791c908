"""Independent pieces of work on several processes, with results in order and nothing left behind when it ends early.

Workers are forked where that is safe to rely on (Linux), since a fresh interpreter spends longer on its imports than on
dozens of phantoms; elsewhere they are spawned, which needs work and items that can be pickled. NumPy's element-wise
loops use one thread, so a worker takes one core.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from medical_diffusion.errors import UserError

MAX_WORKERS = 8
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
LEAST_ITEMS = {"fork": 8, "spawn": 96}  # below this many the start of workers costs more than they save
AHEAD = 4  # results per worker that may wait for their turn: bounds the memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(items: int) -> int:
    """Processes worth starting for so many items: one where the work is small or only one CPU may be used."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if items < LEAST_ITEMS[START_METHOD] or multiprocessing.current_process().daemon:
        return 1
    return min(cpus, MAX_WORKERS, items)


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, start_method: str = START_METHOD
) -> Iterator[Result]:
    """``map(work, items)`` on ``workers`` processes; with one worker in this process.

    Args:
        work: a function of a module, so that it can be pickled, as its items and results can.
        items: what it is given, one at a time.
        workers: at least 1.
        start_method: of ``multiprocessing``.

    Raises:
        UserError: a worker was ended from outside.
        Exception: what ``work`` raised, at its item's turn.
    """
    if workers == 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context(start_method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        remaining, waiting = iter(items), deque[Future[Result]]()
        waiting.extend(pool.submit(work, item) for item in itertools.islice(remaining, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in itertools.islice(remaining, 1))
            yield result
    except BrokenProcessPool as error:
        raise UserError(
            "the processes that make phantoms must not be ended from outside",
            "one of them was gone, often for want of memory",
            "Free some memory and run the same command again",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
