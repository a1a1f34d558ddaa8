"""The part of a bundle's own runner that starts its C++ program; `edgevit.bundle.runner` is the rest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.runner import DAMAGED, ROOT, STARTED, TOLD, Run

RUNTIME = ""  # it comes along
USED: tuple[str, ...] = ("runner/native/",)  # the program


def load_model(manifest: dict[str, Any], threads: int) -> Run:
    """Start the bundle's own program, which takes images one after the other; the function hands it one."""
    program = ROOT / "runner" / "native" / "runner"
    if not os.access(program, os.X_OK):  # unpacking a zip may lose it
        with suppress(OSError):  # it may be another's, or the disk read-only
            program.chmod(program.stat().st_mode | 0o100)
    classes = manifest["outputs"][0]["shape"][1]
    command = [str(program), str(ROOT), "-", "--top", str(classes)]
    if threads != manifest["target"]["threads"]:  # else it takes as many, or one per CPU
        command += ["--threads", str(threads)]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1)
    except OSError as error:
        cannot_start(program, error, manifest["target"]["arch"])
    STARTED.append(process)
    pipe, answers = process.stdin, process.stdout
    assert pipe is not None and answers is not None

    def run(image: NDArray[np.uint8], effort: float) -> list[NDArray[Any]]:
        try:
            pipe.write(np.float32(effort).tobytes() + image.tobytes())
            pipe.flush()
        except BrokenPipeError:  # it has said why, on standard error
            sys.exit(process.wait() or 1)
        line = answers.readline()
        if not line:
            sys.exit(process.wait() or 1)
        told = json.loads(line)
        if "wall_ms" in told:  # without what starting took, and handing over
            TOLD["milliseconds"] = told["wall_ms"]["median"]
        logits = np.empty((1, classes), dtype=np.float32)
        for index, value in told["top"]:
            logits[0, index] = value
        counted = [np.array(told["tokens"], dtype=np.int32)] if "tokens" in told else []
        return [logits, np.array(told["gates"], dtype=np.uint8), *counted]

    return run


def cannot_start(program: Path, error: OSError, arch: str) -> NoReturn:
    """End where the system does not run the program: another machine's, no right to, or nothing to load it with."""
    why = {
        PermissionError: "give yourself the right to run it (chmod +x), and keep it where programs may be run",
        FileNotFoundError: "it needs glibc, of version 2.34 or newer; lib/ needs none",
    }.get(type(error), f"it is for {arch}, this machine is {platform.machine()}: run it on its device")
    print(f"{program} does not start ({error.strerror}): {why}", file=sys.stderr)
    sys.exit(DAMAGED)
