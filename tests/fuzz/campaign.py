"""Fuzz one target in processes of its own for a while, and count what ran and what was found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.backends.tvm.compile.native import SOURCES
from tests.fuzz.seeds import write_seeds
from tests.fuzz.targets import MOST_BYTES, MOST_SECONDS

# Readers of the C++ runner, by the file of their entry.
NATIVE = {
    "model-json-native": "model_json.cc",
    "runner-native": "runner_inputs.cc",
    "pictures-native": "pictures.cc",
}
COMPILER = "clang++-19"
FOUND = Path(__file__).with_name("found")  # small inputs that found a fault once, by target
MOST_MIB = MOST_BYTES >> 20
# The judge of a Python reader counts CPU seconds; libFuzzer's, in wall time, is for what never returns.
HANG_S = 60
MOST_FAULTS = 10  # of one campaign; each costs a new process
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What came of fuzzing one target.

    Attributes:
        target: its name.
        seconds: wall time of the fuzzing processes, imports included.
        executions: inputs that were tried.
        edges: branches of the reader that ran, as libFuzzer counts them.
        inputs: how many inputs were kept, each of which reached something new.
        faults: a line for each input that was not to be.
    """

    target: str
    seconds: float
    executions: int
    edges: int
    inputs: int
    faults: tuple[str, ...]


def compile_native(name: str, folder: Path) -> Path:
    """The fuzzer of a C++ reader, under the sanitizers of memory and of undefined behaviour.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    program = folder / name
    command = [COMPILER, "-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-deprecated-declarations"]  # inside the C++ library
    command += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-I{place}" for place in sorted({str(source.parent) for source in SOURCES})]
    command += [str(Path(__file__).with_name(NATIVE[name])), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def native_available() -> bool:
    """Whether the compiler of the C++ fuzzer is there."""
    return shutil.which(COMPILER) is not None


def fuzz(name: str, seconds: int, kept: Path, *, seed: int = 0, runs: int = -1) -> Campaign:
    """Fuzz a target for about so many seconds.

    Args:
        name: of `TARGETS` or NATIVE.
        seconds: of all processes together; one that finds a fault ends, and another takes the rest.
        kept: existing folder in which an input that was not to be is left.
        seed: of libFuzzer's choices; 0 takes the time of day.
        runs: inputs after which a process ends, if that is sooner; -1 for no such limit.
    """
    faults: list[str] = []
    executions = edges = inputs = 0
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work, corpus = Path(temporary), Path(temporary) / "corpus"
        corpus.mkdir()
        write_seeds(name, corpus)
        largest = max(path.stat().st_size for path in corpus.iterdir())
        command = _command(name, work)
        while (left := int(begin + seconds - time.monotonic())) > 0 and len(faults) < MOST_FAULTS:
            options = [str(corpus), *([str(FOUND / name)] if (FOUND / name).is_dir() else [])]
            options += [
                f"-max_total_time={left}",
                f"-seed={seed}",
                f"-runs={runs}",
                f"-max_len={max(4096, 2 * largest)}",
            ]
            options += ["-print_final_stats=1", f"-artifact_prefix={kept}/{name}-"]
            done = _run([*command, *options], work)
            executions += _last(r"^stat::number_of_executed_units: +(\d+)", done) or _last(r"^#(\d+)\t", done)
            edges = max(edges, _last(r"^#\d+\t.*cov: (\d+)", done))
            inputs = max(inputs, _last(r"^#\d+\t.*corp: (\d+)", done))
            if done.returncode == 0:
                break
            faults.append(fault_of(done))
    return Campaign(
        target=name,
        seconds=round(time.monotonic() - begin, 1),
        executions=executions,
        edges=edges,
        inputs=inputs,
        faults=tuple(faults),
    )


def _command(name: str, work: Path) -> list[str]:
    if name in NATIVE:
        limits = [f"-timeout={MOST_SECONDS:.0f}", f"-rss_limit_mb={MOST_MIB}", f"-malloc_limit_mb={MOST_MIB}"]
        return [str(compile_native(name, work)), *limits]
    # The process itself ends what grows by MOST_MIB; this is for what never returns.
    limits = [f"-timeout={HANG_S}", f"-rss_limit_mb={4 * MOST_MIB}"]
    return [sys.executable, "-W", "ignore", "-m", "tests.fuzz.child", name, str(work), *limits]


def _run(command: Sequence[str], temporary: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT, env=environment
    )


def _last(pattern: str, done: subprocess.CompletedProcess[str]) -> int:
    found = re.findall(pattern, done.stderr + done.stdout, re.MULTILINE)
    return int(found[-1]) if found else 0


def fault_of(done: subprocess.CompletedProcess[str]) -> str:
    """What a fuzzing process ended with, in a line, and where its input was left."""
    text = done.stdout + done.stderr  # atheris prints the exception to the one, libFuzzer its words to the other
    place = re.search(r"Test unit written to (\S+)", text)
    cause = re.search(r"Uncaught Python exception: ===\n(.+)|^(?:==\d+==|SUMMARY: )\s*(.+)", text, re.MULTILINE)
    said = next(filter(None, cause.groups()), "") if cause else f"exit code {done.returncode}: {text[-300:]}"
    return f"{said.strip()} ({Path(place[1]).name if place else 'no input was left'})"
