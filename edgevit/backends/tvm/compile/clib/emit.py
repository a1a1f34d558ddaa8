"""Write the machine code of a model's kernels."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from edgevit.errors import OutputError

SAID_BYTES = 4096


@contextmanager
def writing_object(native: Any, path: Path) -> Iterator[None]:
    """Write a module of LLVM as an object file while the context does other work; after it the file is there.

    A child does it: where the disk refuses, LLVM ends its process at once.

    Raises:
        OutputError: the child failed; with what it said.
    """
    reads, writes = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():  # of threads, which the child has none of and does not wait for
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _write_and_end(native, path, writes)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        try:
            yield
            _, status = os.waitpid(child, 0)
        except BaseException:
            with suppress(ProcessLookupError, ChildProcessError):  # it may have ended just now
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise
        said = pipe.read(SAID_BYTES).decode("utf-8", "replace").strip()
    if code := os.waitstatus_to_exitcode(status):
        raise OutputError(f"cannot write {path}: {said or f'LLVM ended with code {code}'}")


def _write_and_end(native: Any, path: Path, said: int) -> NoReturn:
    """Write in the child, which must never return into what the parent does."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(said, 2)
        native.write_to_file(str(path))
        code = 0
    except BaseException as error:
        os.write(2, str(error).encode(errors="replace")[-SAID_BYTES:])
    finally:
        os._exit(code)
