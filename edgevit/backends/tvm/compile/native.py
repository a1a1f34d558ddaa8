"""Build the C++ runner for a device: the program and the two runtime libraries, in one folder that can be copied there.

The libraries of this machine's own architecture are the installed ones; another's come from its wheels of the pinned
versions, whose digests are known here.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from edgevit.backends.tvm.compile.toolchain import linker
from edgevit.backends.tvm.run.canary import INSTALL, PINNED, versions
from edgevit.backends.tvm.run.runtime import package
from edgevit.errors import OutputError, RuntimeMissingError
from edgevit.util import strict_json
from edgevit.util.atomic import scratch, sweep
from edgevit.util.machines import MACHINES
from edgevit.util.resources import usable_cache

CXX = Path(__file__).parents[1] / "cxx"
HEADERS = (
    *("error.h", "file.h", "image.h", "machine.h", "manifest.h", "memory.h", "number.h", "options.h", "process.h"),
    *("sha256.h", "threads.h"),
)
SOURCES = tuple(CXX / name for name in ("runner.cc", *HEADERS))
SOURCE = SOURCES[0]
RUNNER = "runner"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One of the two runtime libraries.

    `place` is its path in the package and in the wheel; `wheel` and `aarch64` are the SHA-256 of the pinned aarch64
    wheel and of the library in it.
    """

    package: str
    place: str
    wheel: str
    aarch64: str

    @property
    def name(self) -> str:
        return Path(self.place).name


LIBRARIES = (
    Shared(
        package="apache-tvm",
        place="tvm/lib/libtvm_runtime.so",
        wheel="4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
        aarch64="ba06950fac134b8d71549111fad2c6605cd6f738061fe0482f217c37ccbdff05",
    ),
    Shared(
        package="apache-tvm-ffi",
        place="tvm_ffi/lib/libtvm_ffi.so",
        wheel="c7a759781d4fbf2b99fa12f2741f250b882b06acc2747bb02831d491d1ac7d3c",
        aarch64="673d816bd962daddb55d8b0f8ae137e797500307951d0f721227731df0c13e24",
    ),
)
# What their packages say about the licences of the two libraries and of what is linked into them: (package, text in it,
# its name in a bundle). Those of what is in other libraries of the packages, for GPUs, are left out.
LICENCES = (
    ("apache-tvm", "tvm/LICENSE", "apache-tvm/LICENSE"),
    ("apache-tvm", "tvm/NOTICE", "apache-tvm/NOTICE"),
    ("apache-tvm", "tvm/licenses/LICENSE.builtin_fp16.txt", "apache-tvm/LICENSE.builtin_fp16.txt"),
    ("apache-tvm-ffi", "licenses/LICENSE", "apache-tvm-ffi/LICENSE"),
    ("apache-tvm-ffi", "licenses/NOTICE", "apache-tvm-ffi/NOTICE"),
    ("apache-tvm-ffi", "tvm_ffi/3rdparty/libbacktrace/LICENSE", "apache-tvm-ffi/LICENSE.libbacktrace.txt"),
)
PLATFORM = ("--platform", "manylinux_2_28_aarch64", "--python-version", "3.11", "--only-binary=:all:", "--no-deps")


def build_runner(architecture: str, folder: Path, *, options: Sequence[str] = (), cache: Path | None = None) -> Path:
    """Put the runner into an existing folder, with the two runtime libraries beside it, and return its path.

    Args:
        architecture: `x86_64` or `aarch64`.
        folder: where the three files go.
        options: further ones for the compiler.
        cache: where compiled runners and another architecture's libraries are kept (default: the user's, if it can
            be written; what was fetched for another architecture must have a place).

    Raises:
        RuntimeMissingError: no compiler for the architecture, no TVM, or its libraries cannot be downloaded.
        OutputError: the disk refuses, the compiler fails, or there is no cache for another architecture; says why.
    """
    compiler, found, cache = linker(architecture), versions(), cache or cache_for(architecture)
    shared = libraries(architecture, cache)
    try:
        made_of = [path.read_bytes() for path in (*SOURCES, *shared)]
        banner = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
        key = _digest(repr((found, options)).encode() + banner + b"".join(made_of))
        kept = None if cache is None else cache / f"tvm-runner-{architecture}-{key[:32]}"
        for path, content in zip(shared, made_of[len(SOURCES) :], strict=True):
            strict_json.write_atomic(folder / path.name, content)
        program = kept.read_bytes() if kept is not None and kept.is_file() else None
        if program is None:
            program = _compile(compiler, found["apache-tvm"], options, folder, shared)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                sweep(kept.parent)
                strict_json.write_atomic(kept, program)
        strict_json.write_atomic(folder / RUNNER, program)
        (folder / RUNNER).chmod(0o755)
    except OSError as error:
        raise OutputError(f"cannot write the runner into {folder}: {error.strerror or error}") from error
    return folder / RUNNER


def cache_for(architecture: str) -> Path | None:
    """Return the user's cache; None where it cannot be used and this machine's own architecture can do without.

    Raises:
        OutputError: another architecture's libraries would be downloaded for every build.
    """
    try:
        return usable_cache()
    except OutputError:
        if platform.machine() in MACHINES[architecture]:
            return None
        raise


def _compile(compiler: str, version: str, options: Sequence[str], folder: Path, shared: Sequence[Path]) -> bytes:
    """Return link the runner with the libraries in `folder`."""
    include = package("tvm_ffi") / "include"
    names = [f"-l{path.stem.removeprefix('lib')}" for path in shared]
    linked = " ".join(f"{path.name} {_digest(path.read_bytes())}" for path in shared)
    macros = (f'-DEDGEVIT_TVM="{version}"', f'-DEDGEVIT_LINKED="{linked}"')
    command = [compiler, "-std=c++17", "-O2", "-s", *macros, *options]
    # No path of this machine in the file, and nothing that depends on when it was linked.
    command += ["-Wl,--build-id=none", f"-ffile-prefix-map={include}=.", f"-ffile-prefix-map={SOURCE.parent}=."]
    # Beside the program, wherever it is copied; both stay needed, though only one is named in the source.
    libraries = [f"-L{folder}", "-Wl,--no-as-needed", *names, "-Wl,-rpath,$ORIGIN"]
    with scratch() as temporary:
        output = temporary / RUNNER
        command += ["-isystem", str(include), str(SOURCE), "-o", str(output), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OutputError(f"{compiler} cannot compile {SOURCE.name}:\n{done.stderr.strip()}")
        return output.read_bytes()


def libraries(architecture: str, cache: Path | None) -> tuple[Path, ...]:
    """Return the two runtime libraries for an architecture; another one's are downloaded once.

    Raises:
        RuntimeMissingError: TVM is not installed, or not of the pinned version and another architecture's is wanted,
            or the wheels cannot be had.
    """
    found = versions()
    if platform.machine() in MACHINES[architecture]:
        return tuple(package(shared.place.split("/")[0]).parent / shared.place for shared in LIBRARIES)
    if architecture != "aarch64" or found != PINNED:
        raise RuntimeMissingError(
            f"runtime libraries for {architecture} are known for aarch64 and {PINNED} only, installed is {found}; "
            f"install those: {INSTALL}"
        )
    folder = (cache or usable_cache()) / f"tvm-{PINNED['apache-tvm']}-{architecture}"
    for shared in LIBRARIES:
        path = folder / shared.name
        if not path.is_file() or _digest(path.read_bytes()) != shared.aarch64:
            _download(shared, path)
    return tuple(folder / shared.name for shared in LIBRARIES)


def licences() -> dict[str, str]:
    """Return licence and notice texts that go where the two libraries go, by path.

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
                f"{name} is installed without {place}, which goes along with its libraries; install it again: {INSTALL}"
            )
        found[target] = text
    return found


def _download(shared: Shared, target: Path) -> None:
    """Take one library out of its wheel; pip checks the wheel, the library is checked here."""
    requirement = f"{shared.package}=={PINNED[shared.package]}"
    problem = f"cannot download {requirement} for aarch64, whose wheel holds {shared.name}"
    with scratch() as temporary:
        listed = temporary / "requirements.txt"
        listed.write_text(f"{requirement} --hash=sha256:{shared.wheel}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *PLATFORM]
        command += ["--require-hashes", "--requirement", str(listed), "--dest", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeMissingError(f"{problem}: {reason}")
        (wheel,) = temporary.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(shared.place)
    if _digest(content) != shared.aarch64:
        raise RuntimeMissingError(f"{problem}: the library in it is not the one that is known")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write_atomic(target, content)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
