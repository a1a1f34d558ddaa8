"""Work that is shared out among the cores, with results that do not depend on how many there are."""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# What every thread holds beside the others grows with the model: more of them gain little and cost memory.
MOST_THREADS = 4


def threads_here() -> int:
    """Return how many threads to share work among: the cores that this process may use, at most `MOST_THREADS`."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield `work(item)` in the order of the items, computed by several threads at once (None: one per core).

    Each result is of one thread alone, and no more than one per thread waits to be taken. An error of `work` is raised
    in its turn.
    """
    threads = threads_here() if threads is None else threads
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="edgevit") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's products run in the thread that asks for them, whose sums are then the same on any number of cores.

    OpenBLAS, which NumPy's wheels bring, otherwise takes all cores for each and waits for them spinning. Another BLAS
    is left as it is.
    """
    limits = [(limit, now()) for limit, now in _openblas()]
    try:
        for limit, _ in limits:
            limit(1)
        yield
    finally:
        for limit, before in limits:
            limit(before)


def _openblas() -> list[tuple[Callable[[int], object], Callable[[], int]]]:
    """Return what sets and what tells the threads of every OpenBLAS that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    found = []
    for path in sorted(set(re.findall(r"(/\S*openblas\S*\.so\S*)$", maps, re.MULTILINE))):
        library = ctypes.CDLL(path)
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", ""):
                limit = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                now = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                if limit is not None and now is not None:
                    found.append((limit, now))
    return found
