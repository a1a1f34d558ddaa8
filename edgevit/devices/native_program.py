"""The native measuring program: a bundle's own C++ runner, which needs no Python where it measures.

It runs lists of (image, effort) and prints a line of JSON per run; what to run, and what the lines mean, is here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.read import compare_golden, load_golden
from edgevit.devices.board_environment import emulator_of, environment_of, require_fit
from edgevit.devices.confined import allowance
from edgevit.devices.machine import PROGRAMS, BoardAnswers, Content, RemoteMachine, Step, StepResult
from edgevit.devices.request import ProfileRequest
from edgevit.devices.runtimes import (
    native_model,
    native_outputs,
    native_programs,
    program_of,
)
from edgevit.errors import BundleError, DeviceError
from edgevit.measure.branch_times import traced
from edgevit.measure.fresh_process import Probe
from edgevit.measure.measurement import TimedRun, Times, make_measurement, timed_efforts, timing
from edgevit.measure.run import TRACED_IMAGES, timed_images, timed_order
from edgevit.schema.measurement import GoldenParity, Measurement, ProcessMemory
from edgevit.util import strict_json
from edgevit.util.text import printable

# What a dynamic loader says of a library that is missing, or too old.
LOADER = re.compile(r"error while loading shared libraries: (\S+?):|version `(\w+_[\d.]+)' not found")
RunPlan = Sequence[tuple[int, float]]  # (image, effort) of every run
Lines = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    """A request as the runner is given it; `images` come first in its file of images, then the golden ones."""

    request: ProfileRequest
    threads: int

    @property
    def efforts(self) -> dict[str, float]:
        return timed_efforts(self.request.bundle.manifest, self.request.effort)

    @property
    def timed(self) -> NDArray[np.int64]:
        """Return indices of the images that are timed."""
        images = len(self.request.images)
        return np.arange(images)[timed_images(images, self.request.runs)]

    @property
    def order(self) -> list[tuple[str, int, bool]]:
        return timed_order(len(self.timed), tuple(self.efforts), self.request.runs)

    @property
    def gated(self) -> list[str]:
        return [branch.name for branch in self.request.bundle.manifest.branches if branch.gated]

    @property
    def classes(self) -> int:
        return next(output.shape[-1] for output in self.request.bundle.manifest.outputs if output.name == "logits")


def measure(machine: RemoteMachine, request: ProfileRequest) -> Measurement:
    """Measure a bundle with its own C++ runner on a machine elsewhere.

    Raises:
        DeviceError: the machine cannot be reached, cannot run the bundle, or gives no measurement.
        BundleError: a file of the bundle is not what it should be.
    """
    compiled = request.target.threads
    if request.threads is not None and request.threads > compiled:
        raise DeviceError(
            f"its kernels are compiled for {compiled} thread{'s' * (compiled > 1)}, got --threads "
            f"{request.threads}; omit it"
        )
    bundle = request.bundle
    program = program_of(bundle).path
    if not (bundle.folder / program).is_file():
        raise BundleError(f"{bundle.manifest.name} has no {program}; build it again")
    case = _Case(request=request, threads=request.threads or compiled)
    with machine.session() as session:
        described = session.describe()
        require_fit(bundle, described, machine.name, request.cpus)
        # An emulator has no time of its own.
        names = ("golden", "watched") if emulator_of(described) is not None else ("golden", "timed", "traced")
        results = session.run(_files(case, names), _steps(case, names), timeout_s=request.timeout_s)
    _require_success(results, names, machine.name)
    faults: list[str] = []
    try:
        measured = _measurement(case, described, results, machine.kind)
        # There and back as JSON, which checks every type.
        read = strict_json.from_data(Measurement, strict_json.to_data(measured), faults, "measurement")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        read, faults = None, [str(error)]
    if read is None:
        raise DeviceError(f"{machine.name} gave an answer that cannot be read: {printable('; '.join(faults[:3]))}")
    return read


# ---- What it does there ----


def _files(case: _Case, names: Sequence[str]) -> dict[str, Content]:
    """Return the runner, the model, images and run plans, by path in the folder there."""
    bundle = case.request.bundle
    golden = [load_golden(bundle, each)[0] for each in bundle.manifest.golden]
    plans = _plans(case)
    return {
        **{f"{PROGRAMS}/{path.name}": path for path in native_programs(bundle.folder)},
        **native_model(bundle),
        "images": np.concatenate([case.request.images, *golden]).tobytes(),
        **{f"{name}.plan": _text(plans[name]) for name in names},
    }


def _plans(case: _Case) -> dict[str, RunPlan]:
    """Return what each step runs: golden inputs in a fresh process, the runs that are timed, those traced."""
    first = len(case.request.images)
    timed = [(int(case.timed[index]), case.efforts[path]) for path, index, _ in case.order]
    watched = [(index, case.request.effort or 0.0) for index in range(first)]
    golden = case.request.bundle.manifest.golden
    return {
        "golden": [(first + index, each.effort) for index, each in enumerate(golden)],
        "timed": [*timed, *watched],
        "watched": watched,
        "traced": traced(min(first, TRACED_IMAGES), case.gated),
    }


def _text(plan: RunPlan) -> bytes:
    return "".join(f"{index} {effort!r}\n" for index, effort in plan).encode()


def _steps(case: _Case, names: Sequence[str]) -> list[Step]:
    cpus = case.request.cpus
    options = [] if cpus is None else ["--cpus", ",".join(map(str, cpus))]
    if case.request.target.threads > 1:  # asked for by number, a board with fewer CPUs refuses
        options += ["--threads", str(case.threads)]
    memory_bytes = allowance(case.request.bundle.manifest, seconds=0, threads=case.threads).memory_bytes
    steps = []
    for name in names:
        arguments = [".", "images", "--plan", f"{name}.plan", *options]
        arguments += ["--top", str(case.classes) if name == "golden" else "1"]
        arguments += ["--trace"] if name == "traced" else []
        timed = name in ("timed", "watched")
        program = f"{PROGRAMS}/runner"
        steps.append(
            Step(name=name, program=program, arguments=tuple(arguments), timed=timed, memory_bytes=memory_bytes)
        )
    return steps


# ---- What comes back ----


def _require_success(results: Mapping[str, StepResult], names: Sequence[str], machine: str) -> None:
    """Refuse what a program that failed left, with what it said.

    Raises:
        DeviceError: one failed.
    """
    for name in names:
        result = results.get(name)
        if result is not None and result.status:
            raise DeviceError(_failure(result, machine))


def _failure(result: StepResult, machine: str) -> str:
    loader = LOADER.search(result.err)
    words = printable(result.err).removeprefix("error: ")
    if loader and loader[1]:
        package = "libgcc-s1" if loader[1].startswith("libgcc") else "libstdc++6"
        return (
            f"{machine} lacks {loader[1]}, which the bundle's runner loads; install it there "
            f"(sudo apt-get install {package})"
        )
    if loader:
        return f"{machine} has too old a library: {loader[2]} is needed; update the board's system"
    if result.status == 126:
        return f"{machine} runs no programs in its folder for temporary files; let TMPDIR there name another one"
    if result.status == 132:
        return f"{machine} met an instruction that its CPU does not have; build the bundle for a target that has less"
    if result.status == 137:
        return f"the bundle's runner was ended on {machine}, possibly out of memory; try again"
    return f"{machine} could not run the bundle: {words if result.err.strip() else f'exit code {result.status}'}"


def _measurement(case: _Case, described: BoardAnswers, results: Mapping[str, StepResult], device: str) -> Measurement:
    request = case.request
    fresh = _lines(results["golden"])
    emulated = emulator_of(described) is not None or bool(fresh[1]["emulated"])
    around = results["watched"] if "watched" in results else results["timed"]
    environment = environment_of(
        request.bundle,
        described,
        around.before,
        around.after,
        threads=case.threads,
        cpus=request.cpus,
        emulated=emulated,
    )
    lines = _lines(around)
    return make_measurement(
        request.bundle,
        environment,
        request.used,
        _gates(case, lines[-len(request.images) :]),
        device=device,
        golden=_golden(case, fresh[1:]),
        tokens=_tokens_of(lines[-len(request.images) :]),
        effort=request.effort,
        times=None if emulated else _times(case, lines, _lines(results["traced"]), fresh),
    )


def _times(case: _Case, lines: Lines, told: Lines, fresh: Lines) -> Times:
    """Read the times, and what a fresh process held."""
    gates = _gates(case, lines[1:])
    rows: Mapping[str, list[TimedRun]] = defaultdict(list)
    for (path, index, counts), line, taken in zip(case.order, lines[1:], gates, strict=False):
        if counts:
            rows[path].append((_ms(line["wall_ms"]), _ms(line["cpu_ms"]), index, taken))
    started, loaded = (int(fresh[0][key]) for key in ("started_bytes", "loaded_bytes"))
    # The kernel counts a process's pages in batches, so its high-water mark may be some behind what smaps lists.
    peak = max(int(fresh[-1]["peak_bytes"]), loaded)
    process = ProcessMemory(imported_bytes=started, loaded_bytes=loaded, peak_bytes=peak)
    plans = _plans(case)
    if len(lines) - 1 != len(plans["timed"]) or len(told) - 1 != len(plans["traced"]):
        raise ValueError("runs are missing")
    bundle = case.request.bundle
    names = [branch.name for branch in bundle.manifest.branches]
    return Times(
        images=len(case.timed),
        paths={path: timing(runs) for path, runs in rows.items()},
        trace=program_of(bundle).branch_times([line["calls"] for line in told[1:]], branches=names, gated=case.gated),
        probe=Probe(
            process=process, trace=None, load_ms=float(fresh[0]["load_ms"]), first_run_ms=_ms(fresh[1]["wall_ms"])
        ),
    )


def _ms(told: Any) -> float:
    value = float(told["median"])
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} ms is no time")
    return value


def _lines(result: StepResult) -> list[dict[str, Any]]:
    """Return what the runner printed: a line of loading, and one per run."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number")

    lines = [json.loads(line, parse_constant=refuse) for line in result.out.splitlines() if line]
    if len(lines) < 2 or not all(isinstance(line, dict) for line in lines):
        raise ValueError("the runner's answers are missing")
    return lines


def _gates(case: _Case, lines: Lines) -> NDArray[np.uint8]:
    """Return gates uint8 `[runs, branches]`."""
    gates = np.array([line["gates"] for line in lines])
    branches = len(case.request.bundle.manifest.branches)
    if gates.shape != (len(lines), branches) or not np.isin(gates, (0, 1)).all():
        raise ValueError("gates do not fit the branches")
    return gates.astype(np.uint8)


def _golden(case: _Case, lines: Lines) -> tuple[GoldenParity, ...]:
    bundle = case.request.bundle
    results = (
        compare_golden(bundle, each, native_outputs(line, case.classes), gates, _tokens(line))
        for each, line, gates in zip(bundle.manifest.golden, lines, _gates(case, lines), strict=True)
    )
    return tuple(result.parity(bundle.manifest.golden_tolerance) for result in results)


def _tokens_of(lines: Lines) -> list[list[int]]:
    """Return the tokens of every run; none where their number is fixed."""
    return [_tokens(line).tolist() for line in lines if "tokens" in line]  # type: ignore[union-attr]


def _tokens(line: Mapping[str, Any]) -> NDArray[np.int32] | None:
    return np.array(line["tokens"], np.int32) if "tokens" in line else None
