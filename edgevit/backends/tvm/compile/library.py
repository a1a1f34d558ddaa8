"""Compile a lowered module: `model.so` with the code, `model.weights` with the weights, `model.json` with their use.

`model.so` is the shared one of the C library in `lib`, under the name that runners look for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from edgevit.backends.tvm.compile.clib import link
from edgevit.backends.tvm.compile.clib.source import Library
from edgevit.backends.tvm.compile.emit import Lowered
from edgevit.backends.tvm.compile.passes import PIPELINE
from edgevit.backends.tvm.compile.toolchain import Toolchain, toolchain
from edgevit.backends.tvm.run.canary import INSTALL, versions
from edgevit.backends.tvm.run.runner import (
    LIBRARY,
    MANIFEST,
    SCHEMA,
    WEIGHTS,
    Manifest,
    Parameter,
    TvmRunner,
    aligned,
)
from edgevit.backends.tvm.run.runtime import llvm_architectures
from edgevit.errors import OutputError, RuntimeMissingError
from edgevit.schema.manifest import BundleFile
from edgevit.util import strict_json
from edgevit.util.machines import MACHINES

NAME = "model"  # what the functions of a C library begin with
TAKEN = ("deadline", "edgevit", "example", "plugin")  # by files beside it, and by what such a file declares
TITLE = "A Vision Transformer for images of {width} x {height} and {classes} classes"


def build(lowered: Lowered) -> Any:
    """Return the module's executable; kernels are final, so only what the virtual machine needs is lowered.

    Raises:
        RuntimeMissingError: this TVM cannot compile for the architecture.
    """
    _require_llvm(architecture(lowered))
    passes = tvm.transform.Sequential(
        [
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    target = tvm.target.Target(dict(lowered.isa.target))
    return relax.build(lowered.module, target, relax_pipeline=passes, tir_pipeline=PIPELINE)


def manifest(lowered: Lowered) -> Manifest:
    """Return what the compiled module is to be called with; weights lie in the file one behind the other."""
    spec, offset, parameters = lowered.spec, 0, []
    for name, values in lowered.weights:
        parameters.append(Parameter(name=name, offset_bytes=offset, elements=values.size))
        offset += values.nbytes
    return Manifest(
        schema=SCHEMA,
        tvm=versions()["apache-tvm"],
        isa=lowered.isa.name,
        machines=MACHINES[architecture(lowered)],
        flags=lowered.isa.flags,
        height=spec.image.height,
        width=spec.image.width,
        classes=spec.head.classes,
        branches=len(spec.branches),
        arena=lowered.arena,
        weights=tuple(parameters),
        threads=lowered.isa.threads,
        points=len(spec.merges) if spec.adaptive else 0,
    )


def architecture(lowered: Lowered) -> str:
    """Return first part of the LLVM triple."""
    return str(lowered.isa.target["mtriple"]).split("-")[0]


def name_of(model: str) -> str:
    """Return what the C library of a model is called: the beginning of its name, as C can have it."""
    plain = re.sub(r"[^a-z0-9]+", "_", model.split(".")[0].lower()).strip("_")[:48]
    return plain if re.match(r"[a-z]", plain) and plain not in TAKEN else f"{NAME}_{plain}"[:48].rstrip("_")


def c_library(lowered: Lowered, executable: Any, name: str = NAME) -> Library:
    """Return the C library of what `build` made."""
    spec = lowered.spec
    title = TITLE.format(width=spec.image.width, height=spec.image.height, classes=spec.head.classes)
    return Library(name=name, title=title, lowered=lowered, text=str(executable["as_text"]()))


def write(
    lowered: Lowered, folder: Path, executable: Any = None, *, name: str = NAME, tools: Toolchain | None = None
) -> tuple[str, ...]:
    """Compile into an existing folder and return the file names; equal models give equal bytes.

    Args:
        lowered: the model.
        folder: where the files go, and those of the C library in `lib` below it.
        executable: what `build` made of it, if that is done already.
        name: of the C library.
        tools: what compiles C for the device (default: the architecture's usual compiler).

    Raises:
        RuntimeMissingError: this TVM cannot compile for the architecture, or no C compiler for it.
        OutputError: the disk refuses.
    """
    tools = tools or toolchain(architecture(lowered))
    executable = executable or build(lowered)
    made = c_library(lowered, executable, name)
    names = link.write(made, executable, folder, tools)
    try:
        code = (folder / link.FOLDER / f"lib{name}.so").read_bytes()
        weights = b"".join(values.tobytes() for _, values in lowered.weights)
        about = replace(
            manifest(lowered), memory=made.memory_bytes, files=(listed(LIBRARY, code), listed(WEIGHTS, weights))
        )
        strict_json.write_atomic(folder / LIBRARY, code)
        strict_json.write_atomic(folder / WEIGHTS, weights)
        strict_json.write_atomic(folder / MANIFEST, strict_json.seal(about))
    except OSError as error:
        raise OutputError(f"cannot write the model into {folder}: {error.strerror or error}") from error
    return LIBRARY, WEIGHTS, MANIFEST, *names


def pair_places(lowered: Lowered, executable: Any, name: str = NAME) -> list[tuple[int, int]]:
    """Return where a model's memory has, after a run, what every point chose.

    These are the offsets in bytes of the first set's partners and of its ranks (`kernels.merge.Choice`), float32 each.
    """
    arena = c_library(lowered, executable, name).buffer("arena")
    assert arena is not None and arena.offset is not None
    return [(arena.offset + 4 * found.into.offset, arena.offset + 4 * found.order.offset) for found in lowered.choices]


def listed(name: str, content: bytes) -> BundleFile:
    """Return a file as `model.json` lists it."""
    return BundleFile(path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _require_llvm(architecture: str) -> None:
    known = llvm_architectures()
    if architecture not in known:
        raise RuntimeMissingError(
            f"the installed TVM's LLVM cannot compile for {architecture} (it knows: {', '.join(known) or 'nothing'}); "
            f"install the published build: {INSTALL}"
        )


def runner(lowered: Lowered) -> TvmRunner:
    """Compile and load here, without files."""
    weights = [aligned(values.shape, np.float32) for _, values in lowered.weights]
    for array, (_, values) in zip(weights, lowered.weights, strict=True):
        array[...] = values
    return TvmRunner(build(lowered).jit(), manifest(lowered), weights)
