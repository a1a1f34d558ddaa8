"""List the targets, and read one."""

from __future__ import annotations

import re
from pathlib import Path

from edgevit.backends.targets import load_target
from edgevit.build.host import HOST, host_target
from edgevit.errors import OutputError, TargetError
from edgevit.schema.target import Target, list_targets
from edgevit.util import atomic
from edgevit.util.paths import is_there
from edgevit.util.progress import say
from edgevit.util.resources import shipped

# Keys that a target may have beside those that all of them have.
BUDGET_LINES = (
    "# Budgets; the build, the bundle's README and the report say which are met.",
    "# ram_mb = 64         most memory of the process, in MB",
    "# flash_mb = 8        most bytes of the files that the device loads, in MB",
    "# latency_ms = 30     most time of an image, 95th percentile, in ms",
    "# drop_points = 1     most points lost against the original",
)
COMPILER_LINES = (
    "# What compiles the C library.",
    '# libc = "musl"       or glibc, glibc-2.17 (no symbol may be newer), bionic',
    '# cc = "..."          the C compiler, by name or path',
    '# sysroot = "..."     a folder with the device\'s C library',
)

__all__ = ["Target", "export_target", "list_targets", "target", "targets"]


def targets() -> tuple[Target, ...]:
    """Return the targets that ship with edgevit, by name.

    Example:
        >>> sorted({target.arch for target in edgevit.targets()})
        ['aarch64', 'x86_64']
    """
    return tuple(load_target(name) for name in list_targets())


def target(name: str | Path) -> Target:
    """Return one target, with the reason of each of its choices.

    Args:
        name: a name that `targets()` lists, the path of a TOML file, or "host": the fastest for this machine.

    Raises:
        TargetError: nothing is called so (the nearest names are offered), or the file has faults (all are listed).

    Example:
        >>> edgevit.target("x86-64-onnxruntime").weight_bits
        8
    """
    return _for_here() if name == HOST else load_target(name)


def _for_here() -> Target:
    """Return the fastest target for this machine; says why it is that one."""
    found, why = host_target()
    say(why)
    return found


def export_target(name: str, output: str | Path | None = None) -> Path:
    """Write the TOML file of a target that ships with edgevit, to be changed into one of your own; return its path.

    Keys that it leaves open stand in it as comments.

    Args:
        name: a name that `targets()` lists, or "host".
        output: the file (default: NAME.toml here); it may be called anything that ends in .toml.

    Raises:
        OutputError: it is there already, lies in a bundle, does not end in .toml, or cannot be written.
        TargetError: nothing is called so; the nearest names are offered.
    """
    if name.endswith(".toml"):
        raise TargetError(f"{name} is a file already; --export takes the name of a target: {', '.join(list_targets())}")
    name = target(name).name
    path = Path(f"{name}.toml") if output is None else Path(output)
    if path.suffix != ".toml":
        raise OutputError(f"{path} does not end in .toml, which tells a target file from a name; rename it")
    atomic.refuse_inside(path)
    if is_there(path):
        raise OutputError(f"{path} already exists; choose another file with -o")
    try:
        text = (shipped("targets") / f"{name}.toml").read_text(encoding="utf-8")
        atomic.write_file(path, _with_what_may_be_set(text).encode(), replace=False)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _with_what_may_be_set(text: str) -> str:
    """Return the text of a target with the keys that may be set, and are not, as comments before its reasons."""
    machine_code = re.search(r"^cpu = ", text, re.MULTILINE) is not None
    lines = [*BUDGET_LINES, *(COMPILER_LINES if machine_code else ())]
    said = "\n".join(line for line in lines if not re.search(rf"^{line[2:].split(' ')[0]} = ", text, re.MULTILINE))
    return text.replace("\n[reasons]", f"\n{said}\n\n[reasons]", 1)
