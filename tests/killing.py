"""End a process that writes, by a signal, before every single thing that it does to the file system.

`python -m tests.killing FOLDER SIGNAL [--no-exchange]` writes over what is there once for every such moment, in a
forked process each, and prints how often that was. It fails if what is left is neither the old nor the new one, whole;
if another start does not leave both parts of one build; or if anything else stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevit.bundle.read import open_bundle
from edgevit.bundle.write import refuse_existing, write_bundle
from edgevit.program.program import load_program, save_program
from edgevit.util import atomic, renames, strict_json
from tests.bundles import MODEL, sample_manifest
from tests.tiny import tiny_program

# What Python tells an audit hook before it does it; exchanges it does not tell, those are added.
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "open", "fcntl.flock")
MOST = 1000


def bundle(path: Path, version: int) -> None:
    manifest = sample_manifest(tiny_program(depth=version))
    write_bundle(path, manifest, {MODEL["onnxruntime"]: bytes([version])}, [], force=True)


def versions_of_bundle(path: Path) -> list[int]:
    """The versions of the folder and of the zip, both checked byte by byte."""
    found = []
    for part in (path, path.with_name(f"{path.name}.zip")):
        with open_bundle(part) as opened:
            found.append((opened.folder / opened.manifest.model).read_bytes()[0])
            assert len(opened.manifest.branches) == 2 * found[-1]
    return found


def program(path: Path, version: int) -> None:
    save_program(tiny_program(depth=version), path, force=True)


def versions_of_program(path: Path) -> list[int]:
    return [len(load_program(path).spec.branches) // 2]


def file(path: Path, version: int) -> None:
    strict_json.write_atomic(path, bytes([version]) * 100_000)


def versions_of_file(path: Path) -> list[int]:
    content = path.read_bytes()
    assert content == content[:1] * 100_000
    return [content[0]]


KINDS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], list[int]], Callable[[Path], None]]] = {
    "bundle": (bundle, versions_of_bundle, lambda path: refuse_existing(path, force=True)),
    "program": (program, versions_of_program, lambda path: atomic.refuse_existing(path, "program", force=True)),
    "file": (file, versions_of_file, lambda path: atomic.sweep(path.parent)),
}


def moments(what: str, number: int, folder: Path, exchange: bool) -> int:
    """At how many moments a writer was ended, and all was well afterwards."""
    write, versions, start = KINDS[what]
    path, temporary = folder / "out", folder / "tmp"
    temporary.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    if not exchange:
        renames._renameat2 = lambda: None  # type: ignore[assignment]
    write(path, 1)
    for moment in range(MOST):
        status = ended_at(moment, number, lambda: write(path, 2))
        if status == 0:
            assert versions(path) in ([2], [2, 2])
            return moment
        if number == signal.SIGKILL and exchange:
            versions(path)  # whole, each by itself, even before another start
        start(path)
        assert len(set(versions(path))) == 1, f"{moment}: {versions(path)}"
        atomic.sweep(temporary)
        strays = {p.name for p in (*folder.iterdir(), *temporary.iterdir())} - {"out", "out.zip", "tmp"}
        assert not strays, f"{moment}: {strays}"
        write(path, 1)
    raise AssertionError(f"not done after {MOST} steps")


def ended_at(moment: int, number: int, work: Callable[[], None]) -> int:
    """The status of a process that does `work` and is sent a signal before its step `moment`; 0: it has fewer steps."""
    child = os.fork()
    if not child:
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            _watch(moment, number)
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


def _watch(moment: int, number: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    left = moment

    def step() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            os.kill(os.getpid(), number)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        # Reading changes nothing.
        if event in EVENTS and not (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            step()

    real = renames.rename

    def rename(source: Path, target: Path, flags: int) -> bool:
        step()
        done = real(source, target, flags)
        step()
        return done

    renames.rename = rename
    sys.addaudithook(hear)


if __name__ == "__main__":
    root, ending = Path(sys.argv[1]), signal.Signals[sys.argv[2]]
    print(json.dumps({kind: moments(kind, ending, root / kind, "--no-exchange" not in sys.argv) for kind in KINDS}))
