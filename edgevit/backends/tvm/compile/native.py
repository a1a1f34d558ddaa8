"""Build the C++ runner for a device: one program, which loads a model's library and needs glibc and libgcc only."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from edgevit.backends.tvm.compile.clib.source import TEMPLATES
from edgevit.backends.tvm.compile.toolchain import linker
from edgevit.backends.tvm.run.canary import INSTALL, versions
from edgevit.errors import OutputError, RuntimeMissingError
from edgevit.util import strict_json
from edgevit.util.atomic import scratch, sweep
from edgevit.util.resources import usable_cache

CXX = Path(__file__).parents[1] / "cxx"
HEADERS = (
    *("answer.h", "bundle.h", "decode.h", "error.h", "exif.h", "file.h", "image.h", "jpeg.h", "json.h", "library.h"),
    *("list.h", "machine.h", "manifest.h", "memory.h", "number.h", "options.h", "picture.h", "plan.h", "png.h"),
    *("process.h", "resize.h", "session.h", "sha256.h", "stb_image.h", "text.h", "threads.h"),
)
SOURCES = (*(CXX / name for name in ("runner.cc", *HEADERS)), TEMPLATES / "plugin.h")
SOURCE = SOURCES[0]
RUNNER = "runner"


# The C++ library is in the program, and of it only what is used; kernels of one model are in no program.
LINKED = ("-static-libstdc++", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
EXACT = "-ffp-contract=off"  # weights of a resize are the same on every CPU
DECODER = "stb_image.h"  # its licence is its end
# Licences of what TVM's compiler puts into a model's library: (package, text in it, its name in a bundle).
LICENCES = (
    ("apache-tvm", "tvm/LICENSE", "apache-tvm/LICENSE"),
    ("apache-tvm", "tvm/NOTICE", "apache-tvm/NOTICE"),
    ("apache-tvm", "tvm/licenses/LICENSE.builtin_fp16.txt", "apache-tvm/LICENSE.builtin_fp16.txt"),
)


def build_runner(architecture: str, folder: Path, *, options: Sequence[str] = (), cache: Path | None = None) -> Path:
    """Put the runner into an existing folder and return its path.

    Args:
        architecture: `x86_64` or `aarch64`.
        folder: where it goes.
        options: further ones for the compiler.
        cache: where compiled runners are kept (default: the user's, if it can be written).

    Raises:
        RuntimeMissingError: no compiler for the architecture.
        OutputError: the disk refuses, or the compiler fails; says why.
    """
    compiler, cache = linker(architecture), cache or _cache()
    try:
        banner = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
        made_of = [path.read_bytes() for path in SOURCES]
        key = hashlib.sha256(repr((LINKED, EXACT, options)).encode() + banner + b"".join(made_of)).hexdigest()
        kept = None if cache is None else cache / f"tvm-runner-{architecture}-{key[:32]}"
        program = kept.read_bytes() if kept is not None and kept.is_file() else None
        if program is None:
            program = _compile(compiler, options)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                sweep(kept.parent)
                strict_json.write_atomic(kept, program)
        strict_json.write_atomic(folder / RUNNER, program)
        (folder / RUNNER).chmod(0o755)
    except OSError as error:
        raise OutputError(f"cannot write the runner into {folder}: {error.strerror or error}") from error
    return folder / RUNNER


def _cache() -> Path | None:
    try:
        return usable_cache()
    except OutputError:
        return None


def _compile(compiler: str, options: Sequence[str]) -> bytes:
    # No path of this machine in the file, and nothing that depends on when it was linked.
    command = [
        compiler,
        "-std=c++17",
        "-O2",
        EXACT,
        "-s",
        *LINKED,
        *options,
        "-I",
        str(TEMPLATES),
        "-Wl,--build-id=none",
    ]
    command += [f"-ffile-prefix-map={folder}=." for folder in (CXX, TEMPLATES)]
    with scratch() as temporary:
        output = temporary / RUNNER
        command += [str(SOURCE), "-o", str(output), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OutputError(f"{compiler} cannot compile {SOURCE.name}:\n{done.stderr.strip()}")
        return output.read_bytes()


def licences() -> dict[str, str]:
    """Return licence and notice texts that go where a model's library goes, by path.

    Raises:
        RuntimeMissingError: a package is not installed, or without a text.
    """
    versions()
    found = {}
    for name, place, target in LICENCES:
        package = distribution(name)
        text = package.read_text(place) if place.startswith("licenses/") else None
        path = Path(str(package.locate_file(place)))
        if text is None and path.is_file():
            text = path.read_text(encoding="utf-8")
        if not text:
            raise RuntimeMissingError(
                f"{name} is installed without {place}, which goes with what it compiles; install it again: {INSTALL}"
            )
        found[target] = text
    decoder = (CXX / DECODER).read_text(encoding="utf-8")
    return {**found, "stb_image.txt": decoder[decoder.rindex("/*\n---") :]}
