"""The runtime in this process: tvm_ffi and libtvm_runtime.so, without the compiler and the Python package around it."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from edgevit.backends.tvm.run.canary import INSTALL
from edgevit.errors import RuntimeMissingError
from edgevit.util.signals import signals_wait

ERROR = f"{RuntimeMissingError.__module__}.{RuntimeMissingError.__name__}: "
ASK = (sys.executable, "-c", f"from {__name__} import llvm_architectures; print(*llvm_architectures())")
RUNTIME, COMPILER = "lib/libtvm_runtime.so", "lib/libtvm_compiler.so"


@cache
def runtime() -> Any:
    """Return tvm_ffi, with the runtime's functions registered in it.

    Raises:
        RuntimeMissingError: a package is not installed, or its libraries cannot be loaded.
    """
    try:
        with signals_wait():  # they would be taken for a failure of the packages
            ffi = _ffi()
            # Its symbols are for the libraries that are loaded after it.
            ctypes.CDLL(str(package("tvm") / RUNTIME), ctypes.RTLD_GLOBAL)
    except (ImportError, OSError) as error:
        raise RuntimeMissingError(f"TVM's runtime cannot be loaded ({error}); install it: {INSTALL}") from error
    return ffi


def llvm_architectures() -> tuple[str, ...]:
    """Return what the installed TVM's LLVM can compile for; none if it was built without LLVM.

    Raises:
        RuntimeMissingError: a package is not installed, or its libraries cannot be loaded.
    """
    ffi = runtime()
    try:
        ctypes.CDLL(str(package("tvm") / COMPILER), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeMissingError(f"TVM's compiler cannot be loaded ({error}); install it: {INSTALL}") from error
    listed = ffi.get_global_func("target.llvm_get_targets", allow_missing=True)
    return tuple(sorted(str(name) for name in listed())) if listed else ()


def compiles_for() -> tuple[str, ...]:
    """Return the same, asked in a process of its own: whatever else this one loads later must not meet LLVM's symbols.

    Raises:
        RuntimeMissingError: a package is not installed, its libraries cannot be loaded, or the process ended otherwise.
    """
    return _asked(ASK)


@cache
def _asked(command: tuple[str, ...]) -> tuple[str, ...]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise RuntimeMissingError(f"TVM's compiler cannot be used: {reason.removeprefix(ERROR)}")
    return tuple(done.stdout.split())


def package(name: str) -> Path:
    """Return where an installed package lies, found without importing it.

    Raises:
        RuntimeMissingError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeMissingError(f"{name} is not installed; install it: {INSTALL}")
    return Path(spec.origin).parent


def compiler() -> Any:
    """Return the package tvm, imported as `without_torch` says: what compiles kernels is a part of it.

    Raises:
        RuntimeMissingError: see `runtime`.
    """
    runtime()
    with without_torch("tvm"):
        import tvm
    return tvm


@contextmanager
def without_torch(name: str) -> Iterator[None]:
    """Let a package that is imported here for the first time find no torch, unless that is loaded already.

    Where TVM's packages find it they import it, which costs two seconds and 200 MB that nothing here needs.
    """
    hidden = name not in sys.modules and "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def _ffi() -> Any:
    with without_torch("tvm_ffi"):
        import tvm_ffi
    return tvm_ffi
