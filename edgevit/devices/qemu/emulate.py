"""Profile a bundle on an emulated processor: its own runner's results, executed instructions and memory, no times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.devices.confined import allowance
from edgevit.devices.qemu import emulator, native_run, userland
from edgevit.devices.qemu.emulator import Userland
from edgevit.devices.qemu.estimate import assumptions, cycles_of, find_mca, mean, missing
from edgevit.devices.qemu.processes import (
    EmulatedMachine,
    RequestedRun,
    RunResult,
    arena_peak,
    copy_program,
    work,
)
from edgevit.devices.request import ProfileRequest
from edgevit.devices.runtimes import runs_natively
from edgevit.errors import DeviceError, ParityError
from edgevit.measure.measurement import make_measurement, path_efforts
from edgevit.measure.warnings import golden_fault
from edgevit.schema.arm_cpus import ARM_CPUS, ArmCpu
from edgevit.schema.claims import CoverageFigures, figures_of
from edgevit.schema.manifest import BranchFacts, Manifest, counts_tokens
from edgevit.schema.measurement import (
    CycleEstimate,
    Emulation,
    Environment,
    GoldenParity,
    Measurement,
    PathCycles,
    PathInstructions,
)
from edgevit.schema.target import missing_flags
from edgevit.util.atomic import scratch
from edgevit.util.progress import say
from edgevit.verify.instructions import CountedRun, check_skip_instructions

MOST_IMAGES = 8
FIXED_IMAGES = 2  # on the all-open and all-skipped paths, where every image executes the same products
# Beside those of the images, gate patterns for the exact check: this many more than there are shapes of branches.
MORE_PATTERNS, MOST_MORE = 4, 40


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the processes told: of the `requested` inferences, and of the runtime's arena."""

    requested: Sequence[RequestedRun]
    counted: RunResult
    arena_peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class QemuMachine:
    """An emulated processor; see `edgevit.devices.machine.Machine`. Its executed instructions stand for times."""

    cpu: ArmCpu
    kind: str = "qemu"
    emulated: bool = True
    most_images: int | None = MOST_IMAGES

    def check(self, threads: int | None) -> None:
        """Refuse what cannot be done there.

        Raises:
            DeviceError: no user land, or more than one thread: instructions are counted in one.
        """
        if threads not in (None, 1):
            raise DeviceError(f"an emulated device runs one thread, got --threads {threads}")
        userland.installed()

    def measure(self, request: ProfileRequest) -> Measurement:
        """Run a bundle on the emulated processor, and tell what it computed and executed.

        Raises:
            DeviceError: no user land, a bundle that cannot run there, or time is up.
            ParityError: a golden output is not reproduced there.
            SkipError: the counts show that a closed branch runs.
        """
        cpu, place, bundle, pixels = self.cpu, userland.installed(), request.bundle, request.images
        manifest = bundle.manifest
        warnings = _fit(manifest, cpu, place)
        with scratch() as folder:
            allowed = allowance(manifest, seconds=request.timeout_s, threads=1)
            here = EmulatedMachine(
                userland=place,
                cpu=cpu,
                folder=folder,
                timeout_s=request.timeout_s,
                memory_bytes=allowed.memory_bytes,
            )
            copy_program(here.folder / "program", manifest.backend)
            requested = _runs(manifest, len(pixels), request.effort)
            shapes = {_shape(manifest, branch) for branch in manifest.branches if branch.gated}
            more = min(len(shapes) + MORE_PATTERNS, MOST_MORE) if shapes else 0
            say(f"Running up to {len(requested) + more} inferences on the emulated {cpu.name}")
            caches = cpu.core.geometry if find_mca() else ""
            counted = work(here, bundle, pixels, requested, more=more, caches=caches)
            peak = arena_peak(here, bundle, pixels[:1], counted.guest.heap)
            found = _Found(requested=requested, counted=counted, arena_peak_bytes=peak)
            emulation, more_warnings = _emulation(manifest, here, found)
            return make_measurement(
                bundle,
                _environment(counted.guest.environment, here),
                request.used,
                _real_gates(requested, counted.guest.gates),
                device=self.kind,
                emulation=emulation,
                tokens=_real(requested, counted.guest.tokens) if counts_tokens(manifest) else (),
                effort=request.effort,
                warnings=(*warnings, *more_warnings),
            )


def machine(device: str, *, python: str = "python3") -> QemuMachine:
    """Return the emulated processor `qemu:NAME`; it brings its own Python.

    Raises:
        DeviceError: no such processor.
    """
    return QemuMachine(cpu=emulator.parse(device))


def _fit(manifest: Manifest, cpu: ArmCpu, place: Userland) -> tuple[str, ...]:
    """Refuse a bundle that cannot run there; warn of one that runs otherwise than on its target.

    Raises:
        DeviceError: its runtime is not in the user land, or not for aarch64.
    """
    if runs_natively(manifest.backend):
        native_run.require_fit(manifest, cpu)
        return ()
    target = manifest.target
    if manifest.backend not in place.runtimes:
        raise DeviceError(
            f"the emulated device has no {manifest.backend}; run: edgevit device setup {userland.NAME} "
            f"--runtime {manifest.backend}"
        )
    warnings = []
    if target.arch != "aarch64":
        warnings.append(f"the bundle's target is {target.arch}: its choices are not those for {cpu.name}")
    elif missing := missing_flags(target, set(cpu.features)):
        warnings.append(f"{cpu.name} lacks {', '.join(missing)}, which target {target.name} counts on")
    here, verified = place.packages.get(manifest.backend), manifest.tools.get(manifest.backend, "")
    if here and not verified.startswith(here):
        warnings.append(f"the device runs {manifest.backend} {here}, the bundle was verified with {verified}")
    return tuple(warnings)


def _runs(manifest: Manifest, images: int, effort: float | None = None) -> list[RequestedRun]:
    """Return (path, image, effort) of every inference; the first one warms up, and has no path."""
    requested: list[RequestedRun] = []
    for path, asked in path_efforts(manifest, effort).items():
        count = images if path == "real" else min(images, FIXED_IMAGES)
        requested += [(path, index, asked) for index in range(count)]
    return [(None, *requested[0][1:]), *requested]


def _emulation(manifest: Manifest, here: EmulatedMachine, found: _Found) -> tuple[Emulation, tuple[str, ...]]:
    """Check what came against the manifest.

    Raises:
        ParityError: a golden output is not reproduced there.
        SkipError: the counts show that a closed branch runs.
    """
    guest, counted, peak = found.counted.guest, found.counted.classes, found.arena_peak_bytes
    require_golden(guest.golden, here.cpu)
    skip, warnings = "", []
    instructions: tuple[PathInstructions, ...] = ()
    if counted:
        runs = [
            CountedRun(gates=tuple(gates), tokens=tuple(tokens), classes=classes)
            for gates, tokens, classes in zip(guest.gates, guest.tokens, counted, strict=True)
        ]
        shapes = [_shape(manifest, branch) if branch.gated else None for branch in manifest.branches]
        base_share = manifest.macs.all_skipped / manifest.macs.all_open
        skip = check_skip_instructions(runs, shapes, base_share).summary
        instructions = _instructions(found.requested, runs)
    limit = manifest.bound.arena_bytes or None
    if peak is not None and limit is not None and peak > limit:
        warnings.append(
            f"the arena held {peak} bytes there, more than the {limit} computed for the machine that built the bundle"
        )
    estimate, unestimated = _estimate(here, found)
    emulation = Emulation(
        emulator=here.userland.emulator_version,
        cpu=here.cpu.name,
        golden=guest.golden,
        instructions=instructions,
        skip=skip,
        uncounted="" if counted else here.userland.uncounted,
        arena_peak_bytes=peak,
        arena_bytes=limit,
        estimate=estimate,
        unestimated=unestimated,
        heap=guest.heap,
        unaccounted="" if guest.heap else here.userland.unaccounted or "the accountant was not loaded there",
        bound_bytes=manifest.bound.bound_bytes or None,
    )
    return emulation, tuple(warnings)


def _estimate(here: EmulatedMachine, found: _Found) -> tuple[CycleEstimate | None, str]:
    """Return the range of cycles per path; without one, the reason."""
    core, mca = ARM_CPUS[here.cpu.name].core, find_mca()
    if mca is None:
        return None, missing()
    if not found.counted.blocks:
        return None, here.userland.uncounted
    names = list(dict.fromkeys(path for path, _, _ in found.requested if path is not None))
    of = {name: [at for at, (path, _, _) in enumerate(found.requested) if path == name] for name in names}
    try:
        cycles, covered = cycles_of(mca, core, [mean([found.counted.blocks[at] for at in own]) for own in of.values()])
    except DeviceError as error:  # what was counted is worth telling all the same
        return None, str(error)
    paths = []
    for (name, own), told in zip(of.items(), cycles, strict=True):
        misses = found.counted.misses[own[0]]
        paths.append(
            PathCycles(
                path=name,
                images=len(own),
                lower_cycles=told.busy,
                hits_cycles=told.alone,
                upper_cycles=told.alone + core.stall_cycles(misses),
                misses=misses,
            )
        )
    found_range = CycleEstimate(
        tool=mca.version, core=core.model, covered=covered, assumptions=assumptions(core), paths=tuple(paths)
    )
    return found_range, ""


def require_golden(golden: Sequence[GoldenParity], cpu: ArmCpu) -> None:
    """Refuse golden outputs that are not reproduced on an emulated processor.

    Raises:
        ParityError: one is not; the message is of the first.
    """
    for case in golden:
        if not case.held:
            raise ParityError(golden_fault(case, f"on the emulated {cpu.name}"))


def _shape(manifest: Manifest, branch: BranchFacts) -> tuple[Any, ...]:
    """Return what a branch's products depend on: its sizes, and its Linears' columns with kernels of their own."""
    coverage = figures_of(manifest.claims, CoverageFigures)
    outliers = (
        (linear.name.partition(".")[2], linear.int8, linear.outliers)
        for linear in (coverage.exceptions if coverage else ())
        if linear.name.startswith(f"{branch.name}.")
    )
    return (branch.kind, branch.units, branch.macs, branch.int8_linears, *outliers)


def _instructions(requested: Sequence[RequestedRun], runs: Sequence[CountedRun]) -> tuple[PathInstructions, ...]:
    found = []
    for path in dict.fromkeys(path for path, _, _ in requested if path is not None):
        own = [(effort, run) for (name, _, effort), run in zip(requested, runs, strict=False) if name == path]
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


def _real_gates(requested: Sequence[RequestedRun], gates: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Return the gates of every image on the real path, uint8 `[images, branches]`."""
    return np.array(_real(requested, gates), dtype=np.uint8)


def _real(requested: Sequence[RequestedRun], told: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return what was told of the runs on the real path."""
    return [each for (path, _, _), each in zip(requested, told, strict=False) if path == "real"]


def _environment(machine: Environment, here: EmulatedMachine) -> Environment:
    """Describe the emulated processor; what the guest saw of this machine's clock, load and memory is left out."""
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
