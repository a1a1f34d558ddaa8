"""Run a bundle's model in a process of its own, within limits; however that process ends, it is one error.

Runtimes read and run a graph in native code: one that means harm can crash them, never end, or take all memory, and
no exception would tell. So no command loads a bundle's model itself. `call` starts a fresh Python, which holds itself
to its limits (`hold`) before it imports a runtime, and so does whatever it starts. The kernel counts, nobody watches: a
measurement is disturbed by nothing, as the one who waits sleeps until the process has ended or time is up. Then the
whole process group is ended, and the answer read as data.

Memory is what the process can write and share with nobody (RLIMIT_DATA): mapped files, and addresses that are only
reserved, do not count. This is no cage: a graph is held, but machine code, which some bundles are, can do all that the
user can, its limits included.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevit import errors
from edgevit.errors import NO_MEMORY, BundleError, EdgevitError, OutOfMemoryError
from edgevit.schema.manifest import Manifest
from edgevit.util import limits, progress, strict_json
from edgevit.util.signals import exit_words

ANSWER, OUTPUT = "answer.json", "output"
PR_SET_PDEATHSIG = 1
CLEARED = b"\r\x1b[2K\x1b[?25h"  # a bar that was left half drawn goes, and the cursor comes back
MOST_WORDS, MOST_MESSAGE, MOST_OUTPUT_BYTES = 2000, 20_000, 1 << 16
ERRORS = {
    each.exit_code: each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EdgevitError)
}


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a process may take: seconds on the clock, and memory beyond what it has at its start."""

    seconds: float
    memory_bytes: int


def allowance(manifest: Manifest, *, seconds: float, threads: int | None = None) -> Allowance:
    """Return what running a bundle's model may take, by the size of its files and what its manifest says it holds.

    An honest model takes far less (a fresh process of a DeiT-Ti of 6 MB takes 80 MB); what means harm is not given
    more than its maker said openly, or paid for in bytes of files.
    """
    stated = min(max(manifest.bound.bound_bytes, 0), limits.RUN_BOUND_BYTES.value)
    files = sum(file.bytes for file in manifest.files)
    stacks = max(threads or manifest.target.threads, os.cpu_count() or 1) * limits.RUN_THREAD_BYTES.value
    return Allowance(
        seconds=seconds,
        memory_bytes=limits.RUN_BYTES.value + 2 * stated + limits.RUN_EXPANSION.value * files + stacks,
    )


def hold(allowed: Mapping[str, Any]) -> None:
    """Hold this process to an Allowance (as data), and every process it starts; where the system can.

    No more memory than is free, but RUN_BYTES in any case, which few models ever touch. Time is kept by the one that
    started it, with which it ends (on Linux): a limit on processor time would have the kernel count it in whole
    ticks, and a measurement of short runs read zero.
    """
    with suppress(ImportError):
        import resource

        free = max(limits.RUN_BYTES.value, proc_bytes("meminfo", "MemAvailable") or allowed["memory_bytes"])
        limit(resource.RLIMIT_DATA, proc_bytes("self/status", "VmData") + min(allowed["memory_bytes"], free))
        limit(resource.RLIMIT_FSIZE, limits.RUN_FILE_BYTES.value)
        limit(resource.RLIMIT_CORE, 0)
    _end_with_parent()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def held_command(command: Sequence[str], memory_bytes: int) -> list[str]:
    """Return a command of a program that is no Python, which is held to so much memory from its first instruction."""
    return ["/bin/sh", "-c", 'ulimit -d "$0" 2>/dev/null; exec "$@"', str(memory_bytes >> 10), *command]


def call(module: str, request: Mapping[str, Any], folder: Path, allowed: Allowance, subject: str) -> dict[str, Any]:
    """Run a module of this package in a fresh Python and return what it answers.

    Args:
        module: its full name; it takes the request as JSON, calls `hold` with `request["allowed"]`, and leaves an
            object in the file `request["answer"]`: {"error": message, "code": exit code} for what it refuses.
        request: what it is asked.
        folder: where it works, its temporary files included; the caller removes it.
        allowed: what it may take.
        subject: what is run, for the messages.

    Raises:
        EdgevitError: what it refused, as it would have been raised here.
        BundleError: it crashed, took too much of something, or gave no answer.
    """
    asked = {**request, "allowed": asdict(allowed), "subject": subject, "answer": ANSWER}
    code, in_time = _run(module, asked, folder, allowed.seconds)
    words = _last_words(folder / OUTPUT)
    if not in_time:
        raise BundleError(
            f"{subject} did not load and run within {allowed.seconds:g} s and was ended; give a slow device more with "
            "--timeout, or build the bundle again if it never ends"
        )
    if code:
        raise _fault(code, words, allowed, subject)
    try:
        answer = strict_json.read_json(folder / ANSWER)
    except (OSError, ValueError) as error:
        raise BundleError(f"{subject} ran, but gave no answer that can be read ({error}); try again") from None
    if not isinstance(answer, dict):
        raise BundleError(f"{subject} ran, but gave no answer that can be read; try again")
    if "error" in answer:
        raise _refused(answer, allowed, subject)
    return answer


def _run(module: str, request: Mapping[str, Any], folder: Path, seconds: float) -> tuple[int, bool]:
    """Return its exit code (a signal's number below zero), and whether it ended in time; then nothing of it runs."""
    ended, held = os.pipe()  # the kernel closes the process's end when it ends, and nothing has to be polled
    terminal = _terminal()
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            # -P: nothing that lies in the folder is imported.
            [sys.executable, "-P", "-m", module, json.dumps({**request, "terminal": terminal})],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(held, *([] if terminal is None else [terminal])),
        )
    try:
        os.close(held)
        in_time = bool(select.select([ended], [], [], seconds)[0])
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # before it is waited for, while its number is surely its own
        process.wait()
        os.close(ended)
        if terminal is not None:
            os.write(terminal, CLEARED if process.returncode else b"")
            os.close(terminal)
    return process.returncode, in_time


def _terminal() -> int | None:
    """Return a person's terminal for the bars of progress; what native code writes goes elsewhere, into OUTPUT."""
    return os.dup(sys.stderr.fileno()) if progress.drawn() else None


def draw_on(terminal: int | None) -> None:
    """Draw this process's bars of progress on the terminal of the one that started it."""
    if terminal is not None:
        sys.stderr = os.fdopen(terminal, "w", encoding="utf-8", errors="backslashreplace")


def _fault(code: int, words: str, allowed: Allowance, subject: str) -> EdgevitError:
    if NO_MEMORY.search(words):
        return _too_large(allowed, subject)
    if code == -signal.SIGKILL:
        told = "was ended from outside while it ran, possibly out of memory; free some and try again"
        return BundleError(f"{subject} {told}")
    told = f": {words}" if words else ""
    what = "crashed its runtime" if code < 0 else "ended the process that ran it"
    return BundleError(f"{subject} {what} ({exit_words(code)}){told}; it is damaged or means harm: build it again")


def _too_large(allowed: Allowance, subject: str) -> EdgevitError:
    if _limited(allowed.memory_bytes):
        return OutOfMemoryError(
            f"{subject} needs more memory than a limit of this process leaves it; raise it (ulimit -v, ulimit -d)"
        )
    return BundleError(
        f"{subject} needs more memory than the {allowed.memory_bytes / 2**20:.0f} MiB that a bundle of its size and "
        "stated memory bound may take, or than this machine has free; it is damaged or means harm: build it again"
    )


def _limited(memory_bytes: int) -> bool:
    """Return whether this process is held to less memory than that, and so is all that it starts."""
    with suppress(ImportError):
        import resource

        held = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        return any(most != resource.RLIM_INFINITY and most < memory_bytes for most in held)
    return False


def _refused(answer: Mapping[str, Any], allowed: Allowance, subject: str) -> EdgevitError:
    message, code = str(answer["error"])[:MOST_MESSAGE], answer.get("code")
    if NO_MEMORY.search(message):
        return _too_large(allowed, subject)
    kind = ERRORS.get(code, BundleError) if isinstance(code, int) else BundleError
    return kind(message)


def _last_words(path: Path) -> str:
    """Return the last line that a process wrote, at most MOST_WORDS of it."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MOST_OUTPUT_BYTES))
        lines = file.read(MOST_OUTPUT_BYTES).decode(errors="replace").strip().splitlines()
        return lines[-1][:MOST_WORDS] if lines else ""
    return ""


def proc_bytes(file: str, field: str) -> int:
    """Return a figure of memory that the kernel tells in a file below /proc; 0 if it does not."""
    with suppress(OSError):
        text = Path("/proc", file).read_text(encoding="utf-8", errors="replace")
        found = re.search(rf"^{field}:\s*(\d+) kB", text, re.M)
        return int(found[1]) * 1024 if found else 0
    return 0


def limit(kind: int, most: int) -> None:
    """Lower a limit; one that is lower already stays."""
    import resource

    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or most < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
