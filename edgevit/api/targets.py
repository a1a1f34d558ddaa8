"""List the targets, and read one."""

from __future__ import annotations

from pathlib import Path

from edgevit.backends.targets import load_target
from edgevit.schema.target import Target, list_targets

__all__ = ["Target", "list_targets", "target", "targets"]


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
        name: a name that `targets()` lists, or the path of a TOML file.

    Raises:
        TargetError: nothing is called so (the nearest names are offered), or the file has faults (all are listed).

    Example:
        >>> edgevit.target("x86-64-onnxruntime").weight_bits
        8
    """
    return load_target(name)
