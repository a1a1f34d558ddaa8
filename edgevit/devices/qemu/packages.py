"""Fetch what an aarch64 user land is made of, with the machine's own apt-get, dpkg-deb, pip and C compiler."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.devices.qemu.emulator import last_words
from edgevit.errors import DeviceError
from edgevit.util.progress import Say

HERE = Path(__file__).parent
WHEELS = HERE / "wheels.txt"
TOOLS = ("apt-get", "apt-cache", "dpkg-deb")
# Beside Python itself: what numpy, Pillow and the runtimes load, and what Python's own modules for that load.
LIBRARIES = ("libc6", "libgcc-s1", "libstdc++6", "libffi8", "zlib1g", "libexpat1", "libbz2-1.0", "liblzma5")
PLATFORMS = ("manylinux_2_35_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")
FETCH_S = 900


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A package that was fetched; the file may be gone by now."""

    name: str
    version: str
    sha256: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """A qemu-aarch64 (user mode); `libraries` holds what it needs beyond this machine's, if anything."""

    program: Path
    version: str
    plugins: bool
    libraries: Path | None
    packages: tuple[Fetched, ...]


def digest() -> str:
    """Return the sha256 over what a user land is made by: the pinned wheels and the counter's source."""
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".c", ".h", ".txt"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def require_tools() -> None:
    """Refuse a machine without apt-get and dpkg-deb.

    Raises:
        DeviceError: one is missing.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise DeviceError(
            f"setting up the emulated device takes {' and '.join(missing)}, which this machine does not have; it needs "
            "a Debian-like system (as a user, no root)"
        )


def find_qemu(folder: Path, say: Say) -> Qemu:
    """Return this machine's qemu-aarch64 if it takes plugins, else one unpacked into `folder`, else the static one.

    Raises:
        DeviceError: none is here, and none can be fetched.
    """
    here = [
        _qemu(Path(found), None, ())
        for name in ("qemu-aarch64", "qemu-aarch64-static")
        if (found := shutil.which(name))
    ]
    usable = [qemu for qemu in here if qemu is not None]
    counting = [qemu for qemu in usable if qemu.plugins]
    if counting:
        return counting[0]
    say("Fetching qemu")
    try:
        fetched = _fetch_qemu(folder)
    except DeviceError:
        if not usable:
            raise
        return usable[0]
    return fetched if fetched.plugins or not usable else usable[0]


def fetch_root(root: Path, scratch: Path) -> tuple[str, tuple[Fetched, ...]]:
    """Unpack the arm64 C library, C++ library and Python into `root`; returns the name of its Python.

    Raises:
        DeviceError: no registry answers, or it has no arm64 packages.
    """
    options = _private(scratch / "apt")
    said = _run(["apt-get", *options, "update"], "").stderr
    depends = _run(["apt-cache", *options, "depends", "python3-minimal"], "").stdout
    found = re.search(r"(python3\.\d+)-minimal", depends)
    if not found:
        failed = [line for line in said.splitlines() if "Failed to fetch" in line]
        raise DeviceError(
            f"apt-get knows no arm64 packages here ({last_words(failed[0] if failed else said)}); check the network, "
            "and that its sources name a registry that has them. Nothing was changed"
        )
    python = found[1]
    names = (*LIBRARIES, f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib")
    fetched = _apt_download(names, scratch / "arm64", options)
    _unpack(fetched, root)
    # Newer distributions have the loader below /usr only, and a link that belongs to no package unpacked here.
    loader = "lib/ld-linux-aarch64.so.1"
    if not (root / loader).exists() and (root / "usr" / loader).exists():
        (root / "lib").mkdir(exist_ok=True)
        (root / loader).symlink_to(f"../usr/{loader}")
    return python, fetched


def fetch_wheels(requirements: Sequence[str], python: str, scratch: Path) -> tuple[Fetched, ...]:
    """Fetch the aarch64 wheels of `wheels.txt` for a Python named `python3.N`.

    Raises:
        DeviceError: no registry answers, or it has other content than the pinned hashes.
    """
    pinned = {line.split("==")[0]: line for line in WHEELS.read_text(encoding="utf-8").splitlines() if "==" in line}
    chosen, folder = scratch / "requirements.txt", scratch / "wheels"
    chosen.write_text("\n".join(pinned[name] for name in requirements) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--retries", "2", "-r", str(chosen), "-d", str(folder)]
    command += [f"--platform={name}" for name in PLATFORMS]
    command += ["--implementation=cp", f"--python-version={python.removeprefix('python')}"]
    _run(command, f"pip cannot fetch the aarch64 wheels for {python}; nothing was changed")
    return tuple(_fetched(path, *path.name.split("-")[:2]) for path in sorted(folder.glob("*.whl")))


def compile_counter(folder: Path, qemu: Qemu) -> tuple[Path | None, str]:
    """Compile the instruction counter into `folder`; without one, the reason."""
    if not qemu.plugins:
        return None, f"{qemu.version} takes no plugins; Debian 12's qemu-user does"
    api = plugin_api(qemu.version)
    if api is None:
        return None, f"{qemu.version} takes other plugins than those of qemu 7.2 to 10.2, which the counter is made for"
    compiler = _first("cc", "gcc", "clang")
    if compiler is None:
        return None, "there is no C compiler (sudo apt-get install gcc libc6-dev), and the counter is compiled here"
    return _compile([compiler, f"-DPLUGIN_API={api}"], "count.c", folder / "count.so")


def compile_accountant(folder: Path) -> tuple[Path | None, str]:
    """Compile the accountant of the device's heap into `folder`; without one, the reason."""
    compiler = _first("aarch64-linux-gnu-gcc")
    if compiler is None:
        return None, "there is no aarch64 C compiler (sudo apt-get install gcc-aarch64-linux-gnu) for the accountant"
    return _compile([compiler, "-nostdlib", "-fno-builtin"], "heap.c", folder / "heap.so", "-lgcc")


def plugin_api(version: str) -> int | None:
    """Return the plugin interface's version of `qemu-aarch64 X.Y.Z`, None for one `count.c` was not tried with."""
    found = re.search(r" (\d+)\.(\d+)", version)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    since = (((7, 0), 1), ((9, 0), 2), ((9, 1), 3), ((9, 2), 4), ((10, 1), 5), ((10, 2), 6))
    known = [api for first, api in since if first <= release < (11, 0)]
    return known[-1] if known else None


def _first(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


def _compile(compiler: Sequence[str], source: str, library: Path, *options: str) -> tuple[Path | None, str]:
    command = [*compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (None, f"the C compiler failed: {last_words(done.stderr)}") if done.returncode else (library, "")


def _qemu(program: Path, libraries: Path | None, packages: tuple[Fetched, ...]) -> Qemu | None:
    """Ask a qemu for its version; None if it does not run."""
    environment = {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}
    told = []
    for option in ("--version", "--help"):
        done = subprocess.run([program, option], capture_output=True, text=True, env=environment, check=False)
        told.append(done.stdout)
    version = re.search(r"qemu-aarch64 version (\d+\.\d+\.\d+)", told[0])
    if not version:
        return None
    return Qemu(
        program=program,
        version=f"qemu-aarch64 {version[1]}",
        plugins="-plugin" in told[1],
        libraries=libraries,
        packages=packages,
    )


def _fetch_qemu(folder: Path) -> Qemu:
    """Unpack qemu-user and those libraries of it that this machine does not have."""
    planned = _run(
        ["apt-get", "--simulate", "--no-install-recommends", "install", "qemu-user"],
        "there is no qemu-aarch64 here and apt-get knows no qemu-user; run: sudo apt-get update, then try again",
    ).stdout
    names = re.findall(r"^Inst (\S+) ", planned, re.M) or ["qemu-user"]
    fetched = _apt_download(names, folder / "debs", ())
    _unpack(fetched, folder)
    shutil.rmtree(folder / "debs")
    libraries = sorted((folder / "usr/lib").glob("*-linux-gnu"))
    qemu = _qemu(folder / "usr/bin/qemu-aarch64", libraries[0] if libraries else None, fetched)
    if qemu is None:
        raise DeviceError("the qemu-user that apt-get fetched does not run here; run: sudo apt-get install qemu-user")
    return qemu


def _private(folder: Path) -> tuple[str, ...]:
    """Return options of an apt that knows arm64 only and touches nothing of this machine's."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    return tuple(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))


def _apt_download(names: Iterable[str], folder: Path, options: Sequence[str]) -> tuple[Fetched, ...]:
    folder.mkdir(parents=True)
    # As root, apt-get would fetch as a user who may not write here.
    command = ["apt-get", *options, "-o", "APT::Sandbox::User=root", "download", *names]
    _run(command, "apt-get cannot fetch packages; nothing was changed", folder)
    found = []
    for path in sorted(folder.glob("*.deb")):
        told = _run(["dpkg-deb", "-f", str(path), "Package", "Version"], "a package that came is damaged").stdout
        name, version = (line.partition(": ")[2] for line in told.splitlines())
        found.append(_fetched(path, name, version))
    return tuple(found)


def _unpack(debs: Iterable[Fetched], root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        _run(["dpkg-deb", "-x", str(deb.path), str(root)], f"{deb.name} cannot be unpacked")


def _fetched(path: Path, name: str, version: str) -> Fetched:
    return Fetched(name=name, version=version, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), path=path)


def _run(command: Sequence[str], failure: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool; with words for its failure, that is an error."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{failure or command[0]}: no answer within {FETCH_S} s") from None
    if failure and done.returncode:
        raise DeviceError(f"{failure} ({last_words(done.stderr)})")
    return done
