"""Whether the installed TVM can be used, found out where a crash does no harm: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from edgevit.errors import RuntimeMissingError

PINNED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
INSTALL = "pip install 'edgevit[tvm]'"
TRIAL = (sys.executable, "-m", "edgevit.backends.tvm.run.canary_steps")
DONE = "done"
TIMEOUT_S = 300


def versions() -> dict[str, str]:
    """Return version of both packages.

    Raises:
        RuntimeMissingError: one of them is not installed.
    """
    found = {}
    for name in PINNED:
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise RuntimeMissingError(f"{name} is not installed; install it: {INSTALL}") from error
    return found


@cache
def require() -> None:
    """Return if TVM can be used: at once for the pinned pair, after a trial for any other.

    Raises:
        RuntimeMissingError: not installed, or the trial failed.
    """
    if versions() != PINNED:
        check()


def check(trial: Sequence[str] = TRIAL, timeout_s: float = TIMEOUT_S) -> None:
    """Try the installed pair in a process of its own.

    Args:
        trial: the command; it prints every step before it takes it, and `done` at the end.
        timeout_s: after this long the trial has failed.

    Raises:
        RuntimeMissingError: the process crashed, failed or did not end; says in which step, and what to install.
    """
    pair = " with ".join(f"{name} {number}" for name, number in versions().items())
    try:
        done = subprocess.run(trial, capture_output=True, text=True, check=False, timeout=timeout_s)
        printed, code, errors = done.stdout, done.returncode, done.stderr
        how = f"ended by signal {-code}" if code < 0 else (errors.strip().splitlines() or ["no reason given"])[-1]
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
        code, how = 1, f"not done after {timeout_s:g} s"
    steps = printed.split()
    if not code and steps[-1:] == [DONE]:
        return
    pins = " ".join(f"{name}=={number}" for name, number in PINNED.items())
    raise RuntimeMissingError(
        f"{pair} cannot be used on this machine: step {steps[-1] if steps else 'start'!r} failed ({how}); "
        f"known to work: {pins}; install them: {INSTALL}"
    )
