"""Profile a bundle on an emulated processor: its own runner's results, executed instructions and memory, no times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit import __version__
from edgevit.backends import backend
from edgevit.bundle.read import open_bundle
from edgevit.devices.local import prepare_images
from edgevit.devices.qemu import emulator, native_run, userland
from edgevit.devices.qemu.cores import CORES
from edgevit.devices.qemu.emulator import Cpu, Userland
from edgevit.devices.qemu.estimate import cycles_of, find_mca, mean, missing
from edgevit.devices.qemu.processes import (
    Asked,
    Golden,
    Place,
    Worked,
    arena_peak,
    copy_program,
    work,
)
from edgevit.errors import DeviceError, ParityError
from edgevit.measure.run import path_efforts
from edgevit.schema.claims import CoverageFigures, figures_of
from edgevit.schema.manifest import BranchFacts, Manifest
from edgevit.schema.measurement import (
    BranchMeasurement,
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
    """What the processes told: of the inferences `asked` for, and of the runtime's arena."""

    asked: Sequence[Asked]
    counted: Worked
    arena_peak_bytes: int | None


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
    with open_bundle(path) as bundle, scratch() as folder:
        warnings = _fit(bundle.manifest, cpu, place)
        pixels, used = prepare_images(bundle, images, min(runs, MOST_IMAGES))
        here = Place(userland=place, cpu=cpu, folder=folder, timeout_s=timeout_s)
        copy_program(here.folder / "program", bundle.manifest.backend)
        asked = _runs(bundle.manifest, len(pixels))
        shapes = {_shape(bundle.manifest, branch) for branch in bundle.manifest.branches if branch.gated}
        more = min(len(shapes) + MORE_PATTERNS, MOST_MORE) if shapes else 0
        say(f"Running up to {len(asked) + more} inferences on the emulated {cpu.name}")
        caches = CORES[cpu.name].geometry if find_mca() else ""
        counted = work(here, bundle, pixels, asked, more=more, caches=caches)
        if backend(bundle.manifest.backend).NATIVE:
            peak = native_run.arena_peak(bundle, counted.answer.heap)
        else:
            peak = arena_peak(here, bundle, pixels[:1])
        found = _Found(asked=asked, counted=counted, arena_peak_bytes=peak)
        emulation, doubts = _emulation(bundle.manifest, here, found)
        return Measurement(
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            edgevit=__version__,
            device="qemu",
            environment=_environment(counted.answer.environment, here),
            images=used,
            paths=(),
            expected_wall_ms=None,
            expected_cpu_ms=None,
            branches=_open_rates(bundle.manifest, asked, counted.answer.gates),
            unattributed_time_ms=None,
            memory=None,
            process=None,
            load_ms=None,
            first_run_ms=None,
            warnings=(*warnings, *doubts),
            emulation=emulation,
        )


def _fit(manifest: Manifest, cpu: Cpu, place: Userland) -> tuple[str, ...]:
    """Refuse a bundle that cannot run there; warn of one that runs otherwise than on its target.

    Raises:
        DeviceError: its runtime is not in the user land, or not for aarch64.
    """
    if backend(manifest.backend).NATIVE:
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
    elif lacking := missing_flags(target, set(cpu.features)):
        warnings.append(f"{cpu.name} lacks {', '.join(lacking)}, which target {target.name} counts on")
    here, verified = place.packages.get(manifest.backend), manifest.tools.get(manifest.backend, "")
    if here and not verified.startswith(here):
        warnings.append(f"the device runs {manifest.backend} {here}, the bundle was verified with {verified}")
    return tuple(warnings)


def _runs(manifest: Manifest, images: int) -> list[Asked]:
    """(path, image, effort) of every inference; the first one warms up, and has no path."""
    asked: list[Asked] = []
    for path, effort in path_efforts(manifest).items():
        count = images if path == "real" else min(images, FIXED_IMAGES)
        asked += [(path, index, effort) for index in range(count)]
    return [(None, *asked[0][1:]), *asked]


def _emulation(manifest: Manifest, here: Place, found: _Found) -> tuple[Emulation, tuple[str, ...]]:
    """Hold what came against the manifest.

    Raises:
        ParityError: a golden output is not reproduced there.
        SkipError: the counts show that a closed branch runs.
    """
    answer, counted, peak = found.counted.answer, found.counted.classes, found.arena_peak_bytes
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
        instructions = _instructions(found.asked, runs)
    limit = manifest.bound.arena_bytes or None
    if peak is not None and limit is not None and peak > limit:
        warnings.append(
            f"the arena held {peak} bytes there, more than the {limit} computed for the machine that built the bundle"
        )
    estimate, unestimated = _estimate(here, found)
    emulation = Emulation(
        emulator=here.userland.emulator_version,
        cpu=here.cpu.name,
        golden=golden,
        instructions=instructions,
        skip=skip,
        uncounted="" if counted else here.userland.uncounted,
        arena_peak_bytes=peak,
        arena_bytes=limit,
        estimate=estimate,
        unestimated=unestimated,
        heap=answer.heap,
        unaccounted="" if answer.heap else here.userland.unaccounted or "the accountant was not loaded there",
        bound_bytes=manifest.bound.bound_bytes or None,
    )
    return emulation, tuple(warnings)


def _estimate(here: Place, found: _Found) -> tuple[CycleEstimate | None, str]:
    """The range of cycles per path; without one, the reason."""
    core, mca = CORES[here.cpu.name], find_mca()
    if mca is None:
        return None, missing()
    if not found.counted.blocks:
        return None, here.userland.uncounted
    names = list(dict.fromkeys(path for path, _, _ in found.asked if path is not None))
    of = {name: [at for at, (path, _, _) in enumerate(found.asked) if path == name] for name in names}
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
        tool=mca.version, core=core.model, covered=covered, assumptions=core.assumptions(), paths=tuple(paths)
    )
    return found_range, ""


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
    coverage = figures_of(manifest.claims, CoverageFigures)
    outliers = (
        (linear.name.partition(".")[2], linear.int8, linear.outliers)
        for linear in (coverage.exceptions if coverage else ())
        if linear.name.startswith(f"{branch.name}.")
    )
    return (branch.kind, branch.units, branch.macs, branch.int8_linears, *outliers)


def _instructions(asked: Sequence[Asked], runs: Sequence[CountedRun]) -> tuple[PathInstructions, ...]:
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
    manifest: Manifest, asked: Sequence[Asked], gates: Sequence[Sequence[int]]
) -> tuple[BranchMeasurement, ...]:
    real = np.array([taken for (path, _, _), taken in zip(asked, gates, strict=False) if path == "real"])
    return tuple(
        BranchMeasurement(
            name=branch.name, open_rate=float(rate), open_time_ms=None, skipped_time_ms=None, time_source="withheld"
        )
        for branch, rate in zip(manifest.branches, real.mean(axis=0), strict=True)
    )


def _environment(machine: Environment, here: Place) -> Environment:
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
