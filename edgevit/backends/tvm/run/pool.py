"""Calls of kernels that several threads share, in this process.

The runtime has a pool for every thread that calls it, which takes its size when it starts and keeps it: so a model with
threads is called from one of its own.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgevit.backends.tvm.run.runtime import RUNTIME, package, runtime
from edgevit.errors import RuntimeMissingError

# Idle threads look for work about a millisecond long before they sleep; by default they do for a tenth of a second.
SPIN = ("TVM_THREAD_POOL_SPIN_COUNT", "3000")
SHARE_ALL = -3
MOST = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"  # of the calling thread; in no header that TVM comes with


class Pool:
    """A thread to call kernels from, which share `threads`: it, and the others of its pool."""

    def __init__(self, threads: int) -> None:
        """Start the threads, on the CPUs that this one may use.

        Raises:
            RuntimeMissingError: the runtime has no such pool.
        """
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="edgevit-tvm")
        self._thread = self.call(threading.get_native_id)
        self.call(_configure, threads)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._caller.submit(function, *arguments).result()

    def close(self) -> None:
        """End the threads."""
        self._caller.shutdown()
        # Python's thread is over before the system's is, which ends the others.
        while Path(f"/proc/self/task/{self._thread}").exists():
            time.sleep(1e-4)


def _configure(threads: int) -> None:
    ffi = runtime()
    limit = ctypes.CDLL(str(package("tvm") / RUNTIME))[MOST]
    limit(threads)
    if threads == 1:
        return  # the runtime starts no pool, and computes the parts of a kernel in turn
    os.environ.setdefault(*SPIN)
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    count = ffi.get_global_func("runtime.NumThreads")
    count()  # starts the pool, every thread bound to a CPU, whichever this process may use
    ffi.get_global_func("runtime.config_threadpool")(SHARE_ALL, threads, cpus)  # and limits it to so many CPUs
    limit(threads)
    if count() != threads:
        raise RuntimeMissingError(f"TVM's runtime has {count()} threads where {threads} were asked for")
