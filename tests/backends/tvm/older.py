"""Builds as they were before a library needed no virtual machine of TVM: people have bundles of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tvm

from edgevit.backends.tvm.compile import library
from edgevit.backends.tvm.compile.emit import Lowered
from edgevit.backends.tvm.compile.toolchain import linker
from edgevit.backends.tvm.run.runner import LIBRARY, MACHINE_SCHEMA, MANIFEST, WEIGHTS
from edgevit.util import strict_json


def write(lowered: Lowered, folder: Path) -> Path:
    """Compile into an existing folder, which is returned."""
    compiler = tvm.support.cc.cross_compiler(linker(library.architecture(lowered)))
    library.build(lowered).export_library(str(folder / LIBRARY), fcompile=compiler, options=["-s"])
    (folder / WEIGHTS).write_bytes(b"".join(values.tobytes() for _, values in lowered.weights))
    files = tuple(library.listed(name, (folder / name).read_bytes()) for name in (LIBRARY, WEIGHTS))
    about = replace(library.manifest(lowered), schema=MACHINE_SCHEMA, files=files)
    (folder / MANIFEST).write_text(strict_json.seal(about))
    return folder
