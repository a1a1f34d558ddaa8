"""Profile machine code on a board over ssh with its own C++ runner: the board needs sh, tar, C and C++ libraries."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit import __version__
from edgevit.backends.native import NativeProgram, native_backend
from edgevit.bundle.read import load_golden
from edgevit.devices.ssh.board_environment import NATIVE, emulator_of, environment_of, require_fit
from edgevit.devices.ssh.connection import Address, printable
from edgevit.devices.ssh.shell import PROGRAMS, Told, Work, run_shell
from edgevit.errors import BundleError, DeviceError
from edgevit.measure.branch_times import Trace, traced
from edgevit.measure.run import (
    TRACED_IMAGES,
    TimedRun,
    branch_times,
    mean_of_image_medians,
    path_efforts,
    path_latency,
    timed_images,
    timed_order,
    timing,
)
from edgevit.measure.warnings import doubts, parity_doubts
from edgevit.schema.manifest import Bundle, PathName
from edgevit.schema.measurement import GoldenParity, ImagesUsed, Measurement, ProcessMemory
from edgevit.util import strict_json

# What a dynamic loader says of a library that is missing, or too old.
LOADER = re.compile(r"error while loading shared libraries: (\S+?):|version `(\w+_[\d.]+)' not found")
Plan = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What is measured where; `images` come first in the file of images there, then the golden ones."""

    bundle: Bundle
    images: NDArray[np.uint8]
    used: ImagesUsed
    address: Address
    runs: int
    threads: int
    cpus: tuple[int, ...] | None

    @property
    def efforts(self) -> dict[PathName, float]:
        return path_efforts(self.bundle.manifest)

    @property
    def timed(self) -> NDArray[np.int64]:
        """Indices of the images that are timed."""
        return np.arange(len(self.images))[timed_images(len(self.images), self.runs)]

    @property
    def program(self) -> NativeProgram:
        return native_backend(self.bundle.manifest.backend).program(self.bundle.folder)

    @property
    def gated(self) -> list[str]:
        return [branch.name for branch in self.bundle.manifest.branches if branch.gated]


def profile(
    bundle: Bundle,
    images: NDArray[np.uint8],
    used: ImagesUsed,
    address: Address,
    *,
    runs: int,
    threads: int | None,
    cpus: Sequence[int] | None,
    timeout_s: float,
) -> Measurement:
    """Measure an opened bundle of machine code on a board.

    `images`, uint8 `[n, height, width, 3]`, are ready for it.

    Raises:
        DeviceError: the board cannot be reached, cannot run the bundle, or gives no measurement.
        BundleError: a file of the bundle is not what it should be.
    """
    compiled = bundle.manifest.target.threads
    if threads is not None and threads > compiled:
        raise DeviceError(
            f"its kernels are compiled for {compiled} thread{'s' * (compiled > 1)}, got --threads {threads}; "
            "leave it away"
        )
    runner = native_backend(bundle.manifest.backend).program(bundle.folder).path
    if not (bundle.folder / runner).is_file():
        raise BundleError(f"{bundle.manifest.name} has no {runner}; build it again")
    held = None if cpus is None else tuple(cpus)
    case = _Case(
        bundle=bundle, images=images, used=used, address=address, runs=runs, threads=threads or compiled, cpus=held
    )
    told: dict[str, str] = {}

    def prepare(machine: Told) -> Work:
        told.update(machine)
        require_fit(case.bundle, machine, address, case.cpus)
        return _work(case, emulated=emulator_of(machine) is not None)

    answers = run_shell(address, prepare, timeout_s=timeout_s)
    _require_success(case, answers)
    faults: list[str] = []
    try:
        # There and back as JSON, which checks every type.
        read = strict_json.from_data(
            Measurement, strict_json.to_data(_measurement(case, told, answers)), faults, "measurement"
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        read, faults = None, [str(error)]
    if read is None:
        raise DeviceError(f"{address} gave an answer that cannot be read: {printable('; '.join(faults[:3]))}")
    return read


# ---- What it does there ----


def _work(case: _Case, *, emulated: bool) -> Work:
    """Golden inputs in a fresh process, then the runs that are timed, then those traced; no times in an emulator."""
    folder, manifest = case.bundle.folder, case.bundle.manifest
    golden = [load_golden(case.bundle, each)[0] for each in manifest.golden]
    steps = ["golden", "watched"] if emulated else ["golden", "timed", "traced"]
    plans = _plans(case)
    files: dict[str, bytes | Path] = {
        **{f"{PROGRAMS}/{path.name}": path for path in sorted((folder / NATIVE).iterdir())},
        **{name: folder / name for name in case.program.files},
        "images": np.concatenate([case.images, *golden]).tobytes(),
        **{f"{step}.plan": _text(plans[step]) for step in steps},
    }
    return Work(files=files, calls=_calls(case, steps))


def _plans(case: _Case) -> dict[str, Plan]:
    """(image, effort) of every run, by step."""
    first = len(case.images)
    timed = [(int(case.timed[index]), case.efforts[path]) for path, index, _ in _order(case)]
    watched = [(index, 0.0) for index in range(first)]
    return {
        "golden": [(first + index, each.effort) for index, each in enumerate(case.bundle.manifest.golden)],
        "timed": [*timed, *watched],
        "watched": watched,
        "traced": traced(min(first, TRACED_IMAGES), case.gated),
    }


def _order(case: _Case) -> list[tuple[PathName, int, bool]]:
    return timed_order(len(case.timed), tuple(case.efforts), case.runs)


def _text(plan: Plan) -> bytes:
    return "".join(f"{index} {effort!r}\n" for index, effort in plan).encode()


def _calls(case: _Case, steps: Sequence[str]) -> str:
    classes = str(next(output.shape[-1] for output in case.bundle.manifest.outputs if output.name == "logits"))
    options = [] if case.cpus is None else ["--cpus", ",".join(map(str, case.cpus))]
    if case.bundle.manifest.target.threads > 1:  # asked for by number, a board with fewer CPUs refuses
        options += ["--threads", str(case.threads)]
    parts = []
    for step in steps:
        command = ["run", step, f"{PROGRAMS}/runner", ".", "images", "--plan", f"{step}.plan", *options]
        command += ["--top", classes if step == "golden" else "1", *(["--trace"] if step == "traced" else [])]
        call = shlex.join(command)
        timed = f"{{ moment before: >before.told; {call} && moment after: >after.told; }}"
        parts.append(timed if step in ("timed", "watched") else call)
    return " && ".join(parts)


# ---- What comes back ----


def _require_success(case: _Case, answers: Told) -> None:
    """Refuse answers of a program that failed, with what it said."""
    for step in ("golden", "watched", "timed", "traced"):
        status = answers.get(f"./{step}.status", "0").strip()
        if status == "0":
            continue
        raise DeviceError(_failure(status, answers.get(f"./{step}.err", ""), case.address))


def _failure(status: str, said: str, address: Address) -> str:
    loader = LOADER.search(said)
    words = printable(said).removeprefix("error: ")
    if loader and loader[1]:
        return (
            f"{address} lacks {loader[1]}, which the bundle's runner loads; install it there "
            "(sudo apt-get install libstdc++6)"
        )
    if loader:
        return f"{address} has too old a library: {loader[2]} is needed; update the board's system"
    if status == "126":
        return f"{address} runs no programs in its folder for temporary files; let TMPDIR there name another one"
    if status == "132":
        return f"{address} met an instruction that its CPU does not have; build the bundle for a target that has less"
    if status == "137":
        return f"the bundle's runner was ended on {address}, for want of memory perhaps; try again"
    return f"{address} could not run the bundle: {words if said.strip() else f'exit code {status}'}"


def _measurement(case: _Case, told: Told, answers: Told) -> Measurement:
    manifest, golden_lines = case.bundle.manifest, _lines(answers, "golden")
    emulated = emulator_of(told) is not None or bool(golden_lines[1]["emulated"])
    golden = _golden(case, golden_lines[1:])
    machine = environment_of(case.bundle, told, answers, threads=case.threads, cpus=case.cpus, emulated=emulated)
    base = Measurement(
        bundle=manifest.name,
        bundle_sha256=case.bundle.sha256,
        edgevit=__version__,
        device="ssh",
        environment=machine,
        images=dataclasses.replace(case.used, timed=0),
        paths=(),
        expected_wall_ms=None,
        expected_cpu_ms=None,
        branches=(),
        unattributed_time_ms=None,
        memory=None,
        process=None,
        load_ms=None,
        first_run_ms=None,
        warnings=(*parity_doubts(golden), *doubts(machine)),
        golden=golden,
    )
    if emulated:
        step = "watched" if "./watched.out" in answers else "timed"
        gates = _gates(case, _lines(answers, step)[-len(case.images) :])
        return dataclasses.replace(base, branches=branch_times(manifest, gates.mean(axis=0), None))
    return _timed(case, base, _lines(answers, "timed"), _trace(case, _lines(answers, "traced")), golden_lines)


def _timed(case: _Case, base: Measurement, lines: Sequence[Any], trace: Trace, fresh: Sequence[Any]) -> Measurement:
    """Fill in the times, and what a fresh process held."""
    order, manifest = _order(case), case.bundle.manifest
    gates = _gates(case, lines[1:])
    rows: Mapping[PathName, list[TimedRun]] = defaultdict(list)
    for (path, index, counts), line, taken in zip(order, lines[1:], gates, strict=False):
        if counts:
            rows[path].append((_ms(line["wall_ms"]), _ms(line["cpu_ms"]), index, taken))
    timings = {path: timing(runs) for path, runs in rows.items()}
    real, held = timings["real"], [int(fresh[0][key]) for key in ("started_bytes", "loaded_bytes")]
    return dataclasses.replace(
        base,
        images=dataclasses.replace(case.used, timed=len(case.timed)),
        paths=tuple(path_latency(path, case.efforts[path], each) for path, each in timings.items()),
        expected_wall_ms=mean_of_image_medians(real.wall_ms, real.image),
        expected_cpu_ms=mean_of_image_medians(real.cpu_ms, real.image),
        branches=branch_times(manifest, gates[len(order) :].mean(axis=0), trace),
        unattributed_time_ms=trace.other_ms,
        memory=trace.memory,
        process=ProcessMemory(imported_bytes=held[0], loaded_bytes=held[1], peak_bytes=int(fresh[-1]["peak_bytes"])),
        load_ms=float(fresh[0]["load_ms"]),
        first_run_ms=_ms(fresh[1]["wall_ms"]),
    )


def _ms(told: Any) -> float:
    value = float(told["median"])
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} ms is no time")
    return value


def _lines(answers: Told, step: str) -> list[dict[str, Any]]:
    """What the runner printed: a line of loading, and one per run."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number")

    lines = [json.loads(line, parse_constant=refuse) for line in answers[f"./{step}.out"].splitlines() if line]
    if len(lines) < 2 or not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"the runner's answers to {step} are missing")
    return lines


def _gates(case: _Case, lines: Sequence[Any]) -> NDArray[np.uint8]:
    """Gates uint8 `[runs, branches]`."""
    gates = np.array([line["gates"] for line in lines])
    if gates.shape != (len(lines), len(case.bundle.manifest.branches)) or not np.isin(gates, (0, 1)).all():
        raise ValueError("gates do not fit the branches")
    return gates.astype(np.uint8)


def _golden(case: _Case, lines: Sequence[Any]) -> tuple[GoldenParity, ...]:
    manifest = case.bundle.manifest
    gates = _gates(case, lines)
    found = []
    for each, line, taken in zip(manifest.golden, lines, gates, strict=True):
        _, logits, expected = load_golden(case.bundle, each)
        got = np.full_like(logits, np.inf)
        for label, value in line["top"]:
            got[0, label] = value
        found.append(
            GoldenParity(
                path=each.path,
                logit_error=float(np.nan_to_num(np.abs(got - logits).max(), nan=1e30, posinf=1e30)),
                allowed=manifest.golden_tolerance,
                gates_equal=bool((taken == expected).all()),
            )
        )
    return tuple(found)


def _trace(case: _Case, lines: Sequence[Any]) -> Trace:
    runs = [line["calls"] for line in lines[1:]]
    if len(runs) != len(_plans(case)["traced"]):
        raise ValueError("traced runs are missing")
    names = [branch.name for branch in case.bundle.manifest.branches]
    return case.program.branch_times(runs, branches=names, gated=case.gated)
