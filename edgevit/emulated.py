"""Profile a bundle on an emulated processor: its own runner's results, executed instructions and memory, no times."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit import __version__, emulatework, serial
from edgevit.bound import arena
from edgevit.bundle.read import open_bundle
from edgevit.bundlespec import (
    BranchFacts,
    BranchMeasurement,
    Bundle,
    Emulation,
    Environment,
    GoldenParity,
    Manifest,
    Measurement,
    PathInstructions,
    PathName,
)
from edgevit.device import emulator, userland
from edgevit.device.emulator import Cpu, Userland
from edgevit.errors import DeviceError, ParityError
from edgevit.measure.run import path_efforts
from edgevit.onboard import program_files
from edgevit.ondevice import prepare_images, target_of
from edgevit.progress import say
from edgevit.targets import missing_flags
from edgevit.verify.instructions import CountedRun, check_skip_instructions

MOST_IMAGES = 8
FIXED_IMAGES = 2  # on the all-open and all-skipped paths, where every image executes the same products
# Beside those of the images, gate patterns for the exact check: this many more than there are shapes of branches.
MORE_PATTERNS, MOST_MORE = 4, 40
MODULES = ("edgevit.emulatework", "edgevit.bound.arena")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A golden case as it came out there."""

    path: PathName
    error: float
    gates_equal: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What `emulatework` leaves: golden cases, the gates of every run, and the machine as its guest sees it."""

    golden: tuple[Golden, ...]
    gates: tuple[tuple[int, ...], ...]
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A processor of the user land, the folder to work in, and what may still be taken."""

    userland: Userland
    cpu: Cpu
    folder: Path
    timeout_s: float

    def python(
        self, arguments: Sequence[str], folder: Path, counts: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return emulator.run(
            self.userland,
            self.cpu,
            arguments,
            folder=folder,
            paths=(self.folder / "program",),
            counts=counts,
            timeout_s=self.timeout_s,
        )


def profile(
    path: Path, images: Path | None, device: str, *, runs: int, threads: int | None = None, timeout_s: float
) -> Measurement:
    """Run a bundle on the emulated processor `device`, `qemu:NAME`, and tell what it computed and executed.

    Args:
        path: the bundle, folder or zip.
        images: the user's, at most MOST_IMAGES of which are run; None: the bundle's golden inputs.
        device: the processor.
        runs: images to run at most.
        threads: must be 1 or None: instructions are counted in one thread.
        timeout_s: how long the emulator may run.

    Raises:
        DeviceError: no such processor, no user land, a bundle that cannot run there, or time is up.
        ParityError: a golden output is not reproduced there.
        SkipError: the counts show that a closed branch runs.
    """
    cpu = emulator.parse(device)
    if threads not in (None, 1):
        raise DeviceError(f"an emulated device runs one thread, got --threads {threads}")
    place = userland.installed()
    with open_bundle(path) as bundle, tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
        warnings = _fit(bundle.manifest, cpu, place)
        pixels, used = prepare_images(bundle, images, min(runs, MOST_IMAGES))
        here = _Place(userland=place, cpu=cpu, folder=Path(folder), timeout_s=timeout_s)
        _copy_program(here.folder / "program")
        asked = _runs(bundle.manifest, len(pixels))
        shapes = {_shape(bundle.manifest, branch) for branch in bundle.manifest.branches if branch.gated}
        more = min(len(shapes) + MORE_PATTERNS, MOST_MORE) if shapes else 0
        say(f"Running up to {len(asked) + more} inferences on the emulated {cpu.name}")
        answer, counted = _work(here, bundle, pixels, asked, more)
        peak = _arena_peak(here, bundle, pixels[:1])
        emulation, found = _emulation(bundle.manifest, here, answer, asked, counted, peak)
        return Measurement(
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            edgevit=__version__,
            device="qemu",
            environment=_environment(answer.environment, here),
            images=used,
            paths=(),
            expected_wall_ms=None,
            expected_cpu_ms=None,
            branches=_open_rates(bundle.manifest, asked, answer.gates),
            unattributed_time_ms=None,
            memory=None,
            process=None,
            load_ms=None,
            first_run_ms=None,
            warnings=(*warnings, *found),
            emulation=emulation,
        )


def _fit(manifest: Manifest, cpu: Cpu, place: Userland) -> tuple[str, ...]:
    """Refuse a bundle that cannot run there; warn of one that runs otherwise than on its target.

    Raises:
        DeviceError: its runtime is not in the user land, or not for aarch64.
    """
    target = target_of(manifest)
    if manifest.backend not in userland.RUNTIMES:
        raise DeviceError(f"{manifest.name} runs with {manifest.backend}, which the emulated device does not have")
    if manifest.backend not in place.runtimes:
        raise DeviceError(
            f"the emulated device has no {manifest.backend}; run: edgevit device setup {userland.NAME} "
            f"--runtime {manifest.backend}"
        )
    warnings = []
    if target.arch != "aarch64":
        warnings.append(f"the bundle's target is {target.arch}: its choices are not those for {cpu.name}")
    elif lacking := missing_flags(target, set(cpu.features)):
        warnings.append(f"{cpu.name} lacks {', '.join(lacking)}, which target {target.name} counts on")
    here, verified = place.packages.get(manifest.backend), manifest.tools.get(manifest.backend, "")
    if here and not verified.startswith(here):
        warnings.append(f"the device runs {manifest.backend} {here}, the bundle was verified with {verified}")
    return tuple(warnings)


def _copy_program(folder: Path) -> None:
    """The modules that run there, apart from this machine's packages."""
    for name, content in program_files(MODULES).items():
        assert isinstance(content, Path)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, folder / name)


def _runs(manifest: Manifest, images: int) -> list[tuple[PathName | None, int, float]]:
    """(path, image, effort) of every inference; the first one warms up, and has no path."""
    asked: list[tuple[PathName | None, int, float]] = []
    for path, effort in path_efforts(manifest).items():
        count = images if path == "real" else min(images, FIXED_IMAGES)
        asked += [(path, index, effort) for index in range(count)]
    return [(None, *asked[0][1:]), *asked]


def _work(
    here: _Place,
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    asked: Sequence[tuple[PathName | None, int, float]],
    more: int,
) -> tuple[Answer, list[dict[str, int]]]:
    """Run all inferences, and up to `more` that look for other gates.

    Returns the answer and, where they can be counted, the instructions of each inference by class.

    Raises:
        DeviceError: the runner fails there.
    """
    np.save(here.folder / emulatework.IMAGES, pixels, allow_pickle=False)
    runs = [(index, effort) for _, index, effort in asked]
    request = {"bundle": str(bundle.folder.resolve()), "runs": runs, "between": more, "threads": 1}
    counts = here.folder / "counts" if here.userland.plugin else None
    done = here.python(["-m", "edgevit.emulatework", json.dumps(request)], here.folder, counts)
    if done.returncode:
        raise DeviceError(
            f"the bundle does not run on the emulated {here.cpu.name}: {emulator.last_words(done.stderr)}"
        )
    counted: list[dict[str, int]] = []
    if counts is not None:
        names, *lines = (line.split() for line in counts.read_text(encoding="ascii").splitlines())
        counted = [dict(zip(names, map(int, line), strict=True)) for line in lines]
    answer = read_answer(here.folder / emulatework.ANSWER, bundle.manifest, len(asked))
    if counted and len(counted) != len(answer.gates):
        raise DeviceError(f"of {len(answer.gates)} inferences {len(counted)} were counted; set the device up again")
    return answer, counted


def read_answer(path: Path, manifest: Manifest, runs: int) -> Answer:
    """Read what the bundle's runner made of it, trusting nothing.

    Raises:
        DeviceError: no answer, or one that does not fit the bundle and the number of runs at least.
    """
    faults: list[str] = []
    try:
        answer = serial.from_data(Answer, json.loads(path.read_text(encoding="utf-8")), faults, "answer")
    except (OSError, ValueError, RecursionError) as error:
        answer, faults = None, [str(error)]
    if answer is not None:
        if [case.path for case in answer.golden] != [case.path for case in manifest.golden]:
            faults.append("golden outputs are missing")
        if len(answer.gates) < runs or {len(gates) for gates in answer.gates} != {len(manifest.branches)}:
            faults.append("gates do not fit the runs and branches")
    if answer is None or faults:
        raise DeviceError(f"the bundle's runner gives no answer that can be read: {'; '.join(faults[:3])}")
    return answer


def _arena_peak(here: _Place, bundle: Bundle, image: NDArray[np.uint8]) -> int | None:
    """What the runtime's arena holds at most there, over all-open, all-skipped and real; None if it has no arena."""
    manifest = bundle.manifest
    if manifest.backend != "onnxruntime":
        return None

    def start(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        return here.python(arguments, folder)

    settings = {key: str(value) for key, value in manifest.runtime_settings.items()}
    measured = arena.measure_arena(bundle.folder / manifest.model, image, settings=settings, start=start)
    return max(path.peak_bytes for path in measured)


def _emulation(
    manifest: Manifest,
    here: _Place,
    answer: Answer,
    asked: Sequence[tuple[PathName | None, int, float]],
    counted: Sequence[dict[str, int]],
    peak: int | None,
) -> tuple[Emulation, tuple[str, ...]]:
    """Hold what came against the manifest.

    Raises:
        ParityError: a golden output is not reproduced there.
        SkipError: the counts show that a closed branch runs.
    """
    golden = _golden(manifest, here.cpu, answer.golden)
    skip, warnings = "", []
    instructions: tuple[PathInstructions, ...] = ()
    if counted:
        runs = [
            CountedRun(gates=tuple(gates), classes=classes)
            for gates, classes in zip(answer.gates, counted, strict=True)
        ]
        shapes = [_shape(manifest, branch) if branch.gated else None for branch in manifest.branches]
        base_share = manifest.macs.all_skipped / manifest.macs.all_open
        skip = check_skip_instructions(runs, shapes, base_share).summary
        instructions = _instructions(asked, runs)
    limit = manifest.bound.arena_bytes or None
    if peak is not None and limit is not None and peak > limit:
        warnings.append(
            f"the arena held {peak} bytes there, more than the {limit} computed for the machine that built the bundle"
        )
    emulation = Emulation(
        emulator=here.userland.emulator_version,
        cpu=here.cpu.name,
        golden=golden,
        instructions=instructions,
        skip=skip,
        uncounted="" if counted else here.userland.uncounted,
        arena_peak_bytes=peak,
        arena_bytes=limit,
    )
    return emulation, tuple(warnings)


def _golden(manifest: Manifest, cpu: Cpu, told: Sequence[Golden]) -> tuple[GoldenParity, ...]:
    for case in told:
        if not case.gates_equal or not case.error <= manifest.golden_tolerance:
            what = "other gates" if not case.gates_equal else f"logits off by {case.error:.3g}"
            raise ParityError(
                f"golden path {case.path} gives {what} on the emulated {cpu.name} (allowed: equal gates, "
                f"{manifest.golden_tolerance:.3g})"
            )
    return tuple(
        GoldenParity(path=case.path, logit_error=case.error, allowed=manifest.golden_tolerance) for case in told
    )


def _shape(manifest: Manifest, branch: BranchFacts) -> tuple[Any, ...]:
    """What a branch's products depend on: its sizes, and columns of its Linears that make kernels of their own."""
    coverage = next((claim.figures for claim in manifest.claims if claim.name == "coverage"), {})
    outliers = (
        (e["name"].partition(".")[2], e["int8"], e["outliers"])
        for e in coverage.get("exceptions", ())
        if e["name"].startswith(f"{branch.name}.")
    )
    return (branch.kind, branch.units, branch.macs, branch.int8_linears, *outliers)


def _instructions(
    asked: Sequence[tuple[PathName | None, int, float]], runs: Sequence[CountedRun]
) -> tuple[PathInstructions, ...]:
    found = []
    for path in dict.fromkeys(path for path, _, _ in asked if path is not None):
        own = [(effort, run) for (name, _, effort), run in zip(asked, runs, strict=False) if name == path]
        classes = {name: float(np.mean([run.classes[name] for _, run in own])) for name in own[0][1].classes}
        found.append(
            PathInstructions(
                path=path,
                effort=own[0][0],
                branches_open=float(np.mean([sum(run.gates) for _, run in own])),
                images=len(own),
                total=sum(classes.values()),
                classes=classes,
            )
        )
    return tuple(found)


def _open_rates(
    manifest: Manifest, asked: Sequence[tuple[PathName | None, int, float]], gates: Sequence[Sequence[int]]
) -> tuple[BranchMeasurement, ...]:
    real = np.array([taken for (path, _, _), taken in zip(asked, gates, strict=False) if path == "real"])
    return tuple(
        BranchMeasurement(
            name=branch.name, open_rate=float(rate), open_time_ms=None, skipped_time_ms=None, time_source="withheld"
        )
        for branch, rate in zip(manifest.branches, real.mean(axis=0), strict=True)
    )


def _environment(machine: Environment, here: _Place) -> Environment:
    """The emulated processor; what the guest saw of this machine's clock, load and memory is left out."""
    return dataclasses.replace(
        machine,
        cpu=f"{here.cpu.name}, emulated",
        cores=1,
        governor=None,
        frequency_before_mhz=None,
        frequency_after_mhz=None,
        temperature_before_c=None,
        temperature_after_c=None,
        load_average_before=None,
        load_average_after=None,
        memory_total_bytes=None,
        throttling=None,
        emulated_by=here.userland.emulator_version,
    )
