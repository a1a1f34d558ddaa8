"""The part of a bundle's own runner that starts its C++ program; `edgevit.bundle.runner` is the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.runner import ROOT, STARTED, Run

RUNTIME = ""  # it comes along
USED: tuple[str, ...] = ("runner/native/",)  # the program


def load_model(manifest: dict[str, Any], threads: int) -> Run:
    """Start the bundle's own program, which takes images one after the other; the function hands it one."""
    program = ROOT / "runner" / "native" / "runner"
    program.chmod(program.stat().st_mode | 0o100)  # unpacking a zip may lose it
    classes = manifest["outputs"][0]["shape"][1]
    command = [str(program), str(ROOT), "-", "--top", str(classes)]
    if threads != manifest["target"]["threads"]:  # else it takes as many, or one per CPU
        command += ["--threads", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1)
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
        logits = np.empty((1, classes), dtype=np.float32)
        for index, value in told["top"]:
            logits[0, index] = value
        counted = [np.array(told["tokens"], dtype=np.int32)] if "tokens" in told else []
        return [logits, np.array(told["gates"], dtype=np.uint8), *counted]

    return run
