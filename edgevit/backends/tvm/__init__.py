"""TVM: kernels and an emitter of our own, from a Program to one shared library per device.

A build is `model.so` (code), `model.weights` (mapped when it runs), `model.json` (what to call it with, and the two's
hashes), in `lib` the same code as a C library to link, and in `runner/native` a C++ program that runs them: all that a
device needs beside its own C library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.backends.refusals import (
    refused_attention,
    refused_formats,
    refused_precision,
    refused_products,
    refused_threads,
)
from edgevit.backends.tvm.compile.toolchain import LIBC, LIBCS, Toolchain, linker, toolchain
from edgevit.backends.tvm.compile.toolchain import PACKAGES as ARCHITECTURES
from edgevit.backends.tvm.inspect.bytecode import Memory, bound
from edgevit.backends.tvm.inspect.shipped import read
from edgevit.backends.tvm.run.canary import INSTALL as INSTALL
from edgevit.backends.tvm.run.canary import PINNED
from edgevit.backends.tvm.run.canary import require as usable
from edgevit.backends.tvm.run.canary import versions as installed
from edgevit.backends.tvm.run.process import ProcessRunner, command, foreign
from edgevit.backends.tvm.run.runner import (
    LIBRARY,
    MANIFEST,
    MOST_THREADS,
    WEIGHTS,
    LibraryRunner,
    TvmRunner,
    read_manifest,
)
from edgevit.backends.tvm.run.runner import load as load_here
from edgevit.backends.tvm.run.runtime import compiler, compiles_for, llvm_architectures, runtime
from edgevit.errors import BundleError, DeviceError, RuntimeMissingError, TargetError
from edgevit.util.resources import usable_cache
from edgevit.util.strict_json import dumps, write_atomic

if TYPE_CHECKING:
    from edgevit.backends import Source, Start
    from edgevit.backends.tvm.codegen.schedules import Isa
    from edgevit.backends.tvm.run.program import TvmProgram
    from edgevit.measure.branch_times import Trace
    from edgevit.program.program import Program
    from edgevit.schema.quant_plan import QuantPlan
    from edgevit.schema.target import Target

NAME = "tvm"
FILES: Mapping[str, str] = {"so": LIBRARY}
FORMATS = tuple(FILES)
BESIDE: tuple[str, ...] = (WEIGHTS,)
PACKAGES: tuple[str, ...] = tuple(PINNED)
WHEELS: tuple[str, ...] = ()  # its program needs no runtime
NATIVE = True
READS_ONNX = False
MERGES = True
FOLLOWING_COSTS = ""
KERNELS, PAIRS = "kernels.json", "pairs.json"  # for verifiers, not for the bundle
PROGRAM, SOURCES, LICENCES = "runner/native", "runner/source", "licences"
RUNNER = f"{PROGRAM}/runner"
CPU_NAME = "[A-Za-z0-9._+-]{1,64}"  # it becomes a part of what the compiler is told


def versions() -> dict[str, str]:
    found = installed()
    runtime()
    return {"tvm": found["apache-tvm"], "tvm_ffi": found["apache-tvm-ffi"]}


def refused(target: Target) -> tuple[str, ...]:
    return (
        *_refused_arch(target),
        *_refused_libc(target),
        *refused_threads(target, MOST_THREADS),
        *refused_formats(target, FILES),
        *refused_precision(target),
        *refused_attention(target, int8=True),
        *refused_products(target, able=target.arch == "x86_64"),
        *_refused_cpu(target),
    )


def _refused_arch(target: Target) -> tuple[str, ...]:
    if target.arch in ARCHITECTURES:
        return ()
    return (
        f"arch: got {target.arch!r}, allowed: {', '.join(ARCHITECTURES)}; microcontrollers (Cortex-M and the like) are "
        "not supported: a ViT needs megabytes of memory and vectors of floats",
    )


def _refused_libc(target: Target) -> tuple[str, ...]:
    if target.libc is None or LIBC.fullmatch(target.libc):
        return ()
    return (f"libc: got {target.libc!r}, allowed: {LIBCS}",)


def _refused_cpu(target: Target) -> tuple[str, ...]:
    """Return the fault of a target without a CPU that there are kernels for; the flags that it needs are looked at."""
    if target.cpu is None:
        return ("cpu: missing; machine code is compiled for one CPU: name it as LLVM does, such as 'x86-64-v3'",)
    if not re.fullmatch(CPU_NAME, target.cpu):
        return (f"cpu: got {target.cpu!r}, allowed: a name as LLVM has them, of letters, digits and . _ + -",)
    try:
        isa_of(target)
    except TargetError as error:
        return (f"cpu, requires_flags: {error}",)
    return ()


def lacking(target: Target, *, installed: bool) -> tuple[str, ...]:
    """Return what is missing to compile machine code for the target."""
    remarks = []
    for find in (lambda: linker(target.arch), lambda: tools_of(target)):
        try:
            find()
        except RuntimeMissingError as error:
            remarks.append(str(error))
    if not installed:
        return tuple(remarks)
    try:
        known = llvm_architectures()
    except RuntimeMissingError as error:
        return (*remarks, str(error))
    if target.arch not in known:
        remarks.append(f"the installed TVM cannot compile for {target.arch}, only for: {', '.join(known) or 'nothing'}")
    return tuple(remarks)


def build(source: Source, folder: Path) -> tuple[str, ...]:
    """Compile the Program for the target's CPU, as a C library, and the C++ runner for it.

    Raises:
        OutputError: the disk refuses.
        RuntimeMissingError: no TVM, an unusable one, one whose LLVM lacks the architecture, or no gcc or g++ for it.
        TargetError: no kernels for the target, or to be searched for where its code does not run.
    """
    usable()
    compiler()
    from edgevit.backends.tvm.codegen.schedules import default_tile
    from edgevit.backends.tvm.compile import library, native, tune
    from edgevit.backends.tvm.compile.clib import link
    from edgevit.backends.tvm.compile.emit import lower
    from edgevit.backends.tvm.inspect import counts

    isa = isa_of(source.target)
    alone = replace(isa, threads=1)  # tiles are searched in the time of one thread
    choose = tune.tuned(source.program, alone, source.plan, source.tune_s) if source.tune_s else default_tile
    for part in (PROGRAM, SOURCES):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:  # the C++ compiler is a process of its own, and has another core
        runner = pool.submit(native.build_runner, source.target.arch, folder / PROGRAM)
        lowered = lower(source.program, isa, source.plan, choose=choose)
        executable = library.build(lowered)
        name = library.name_of(source.program.spec.name)
        tools = tools_of(source.target)
        names = library.write(lowered, folder, executable, name=name, tools=tools)
        kernels = counts.linear_kernels(lowered, executable, folder / link.FOLDER / f"lib{name}.a", tools)
        write_atomic(folder / KERNELS, dumps(kernels))
        write_atomic(folder / PAIRS, dumps(library.pair_places(lowered, executable, name)))
        runner.result()
    for path in native.SOURCES:
        write_atomic(folder / SOURCES / path.name, path.read_bytes())
    for name, text in native.licences().items():
        (folder / LICENCES / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / LICENCES / name, text)
    parts = (PROGRAM, SOURCES, LICENCES)
    written = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    return (*names, *(path.relative_to(folder).as_posix() for path in written))


def require(target: Target, tune_s: float = 0.0) -> None:
    """Refuse at once what `build` would refuse in the end: all that it needs beside the Program is looked at.

    Raises:
        RuntimeMissingError: see `build`.
        TargetError: see `build`.
    """
    versions()
    usable()
    with ThreadPoolExecutor(1) as pool:  # what answers is a process of its own
        asked = pool.submit(compiles_for)
        compiler()
        from edgevit.backends.tvm.compile import tune

        isa, arch = isa_of(target), target.arch
        linker(arch)
        tools_of(target)
        known = asked.result()
    if arch not in known:
        only = ", ".join(known) or "nothing"
        raise RuntimeMissingError(f"the installed TVM cannot compile for {arch}, only for: {only}; install: {INSTALL}")
    if tune_s:
        tune.require_here(isa)
        usable_cache()


def tools_of(target: Target) -> Toolchain:
    """Return what compiles the C library for a target.

    Raises:
        RuntimeMissingError: it is not installed; says what to install.
        TargetError: no such C library.
    """
    return toolchain(target.arch, cc=target.cc, sysroot=target.sysroot, libc=target.libc)


def isa_of(target: Target) -> Isa:
    """Return the richest kernels that need no more than the target's CPU has, compiled for that CPU and its threads.

    Raises:
        TargetError: no kernels fit, or no such CPU.
    """
    from edgevit.backends.tvm.codegen.schedules import ISAS, tuned

    present = set(target.requires_flags)
    fitting = [
        isa
        for isa in ISAS.values()
        if isa.target["mtriple"].startswith(f"{target.arch}-") and present.issuperset(isa.flags)
    ]
    if not fitting:
        raise TargetError(
            f"no kernels for {target.name}: requires_flags must hold all flags of one of "
            + "; ".join(f"{isa.name}: {' '.join(isa.flags)}" for isa in ISAS.values())
        )
    best = replace(max(fitting, key=lambda isa: len(isa.flags)), threads=target.threads)
    return best if target.cpu in (None, best.target["mcpu"]) else tuned(best, target.cpu)


def load(
    folder: Path, *, threads: int = 1, precision: str = "f32", file: str | None = None, weight_bits: int = 8
) -> TvmRunner | LibraryRunner | ProcessRunner:
    """Load the library here, or in an emulator where it is for another architecture.

    `precision` and `weight_bits` were decided when it was compiled.

    Raises:
        BundleError: a file is missing or damaged, or not for this machine, and there is no emulator of the right one.
        DeviceError: more threads are asked for than it was compiled for.
        RuntimeMissingError: TVM's runtime is not installed, and the build is an older one that needs it.
    """
    if precision != "f32":
        raise BundleError(f"TVM keeps what is float in f32, got precision {precision!r}")
    if file not in (None, LIBRARY):
        raise BundleError(f"{folder} has no {file} that TVM could load; it loads {LIBRARY}")
    manifest = read_manifest(folder / MANIFEST)
    if threads > manifest.threads:
        raise DeviceError(
            f"TVM's kernels are compiled for {manifest.threads} thread{'s' * (manifest.threads > 1)}, got {threads}; "
            f"omit --threads, or build for a target with threads = {threads}"
        )
    return start(folder, threads=threads) if foreign(manifest) else load_here(folder, threads)


def start(folder: Path, *, trace: bool = False, threads: int | None = None) -> ProcessRunner:
    """Return the build's own C++ runner, started; with `trace` it can tell every kernel call of a run.

    `threads` is at most what it was compiled for, and so many if None.

    Raises:
        BundleError: it is missing, or cannot run here.
    """
    manifest = read_manifest(folder / MANIFEST)
    runner = folder / RUNNER
    if not runner.is_file():
        raise BundleError(f"{folder} has no {RUNNER}; unpack the bundle again")
    runner.chmod(runner.stat().st_mode | 0o100)  # unpacking a zip may lose it
    return ProcessRunner(command(manifest, runner), folder, manifest, trace=trace, threads=threads)


def program(folder: Path) -> TvmProgram:
    from edgevit.backends.tvm.run.program import TvmProgram

    return TvmProgram(folder=folder, manifest=read_manifest(folder / MANIFEST))


def trace_branches(
    model: Path, images: np.ndarray, *, branches: Sequence[str], gated: Sequence[str], threads: int, **settings: Any
) -> Trace:
    from edgevit.backends.tvm import branch_times

    runner = start(model.parent, trace=True, threads=threads)
    try:
        return branch_times.trace(runner, images, branches=branches, gated=gated)
    finally:
        runner.close()


def arena_peak(model: Path, image: np.ndarray, settings: Mapping[str, str], start: Start | None = None) -> None:
    return None


def memory(folder: Path) -> Memory:
    """Return what a run needs on any path, read off the library without running it, for any architecture.

    Raises:
        BoundError: an instruction or a kernel could allocate.
        BundleError: the library cannot be read.
    """
    return bound(read(folder / LIBRARY), read_manifest(folder / MANIFEST))


def predict(program: Program, plan: QuantPlan | None, target: Target) -> Memory:
    """Return the same, laid out without compiling; a build of other weights in the same structure is exactly as large.

    Raises:
        RuntimeMissingError: no TVM, or an unusable one.
        TargetError: no kernels for the target.
    """
    usable()
    compiler()
    from edgevit.backends.tvm.codegen.schedules import default_tile
    from edgevit.backends.tvm.compile.emit import chain
    from edgevit.backends.tvm.parts.stages import Stages

    spec = program.spec
    stages, image = Stages(program, isa_of(target), default_tile, plan), spec.image
    weights = sum(stage.weights.nbytes for step in chain(stages) for stage in step.stages)
    return Memory(
        arena=4 * stages.arena.size,
        inputs=image.height * image.width * 3 + 4,
        outputs=4 * (spec.head.classes + len(spec.merges) * spec.adaptive) + len(spec.branches),
        weights=weights,
    )


def touched(folder: Path, image: np.ndarray, effort: float) -> tuple[int | None, np.ndarray]:
    """Return bytes that a fresh process touched or allocated in its first run, image included, and the gates.

    None where the system does not tell, or an emulator's memory would be meant.
    """
    runner = start(folder)
    try:
        _, gates = runner.run(image, effort)
        grown = runner.told.get("grown_bytes", -1)
        return grown if grown >= 0 else None, gates
    finally:
        runner.close()


def linear_kernels(folder: Path) -> tuple[tuple[str, bool], ...]:
    """Return every kernel of an int8 Linear as `build` found it in the compiler's assembly: (name, runs as int8)."""
    return tuple((name, int8) for name, int8 in json.loads((folder / KERNELS).read_text(encoding="utf-8")))


def settings(folder: Path, *, precision: str = "f32", weight_bits: int = 8, file: str | None = None) -> dict[str, Any]:
    """Return none: everything was decided when the library was compiled."""
    return {}
