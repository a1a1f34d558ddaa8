"""Targets, and what their runtimes refuse in them: looked at when one is read, and again before anything is built."""

from __future__ import annotations

from pathlib import Path

from edgevit.backends import MODULES, backend
from edgevit.errors import TargetError
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import write_plan
from edgevit.schema import target as target_schema
from edgevit.schema.target import Target


def load_target(name_or_path: str | Path) -> Target:
    """Read a target by shipped name or by the path of a TOML file.

    Raises:
        TargetError: the name is unknown (the nearest names are offered), or the file has faults (all are listed), also
            such that only its runtime knows.
    """
    return target_schema.load_target(name_or_path, refused=refused)


def accept(target: Target) -> Target:
    """Return a target that its runtime can build for.

    Raises:
        TargetError: it asks for what its runtime cannot do; says all that is wrong.
    """
    if faults := refused(target):
        raise target_schema.refusal(f"target {target.name}", faults)
    return target


def accept_program(target: Target, spec: ProgramSpec) -> None:
    """Look at a Program that is to be built for a target, before anything slow begins.

    Raises:
        TargetError: its runtime cannot run what the Program does.
    """
    if spec.merges and not backend(target.backend).MERGES:
        able = ", ".join(name for name in MODULES if backend(name).MERGES)
        raise TargetError(
            f"{spec.name} merges tokens ({write_plan(spec)}), which {target.backend} targets such as {target.name} "
            f"cannot run; take a target of {able}, or omit --tokens and prune instead (--static)"
        )


def following_costs(target: Target, spec: ProgramSpec) -> str:
    """Return what speaks against building this Program, whose number of tokens follows the image; "" for nothing."""
    costs = backend(target.backend).FOLLOWING_COSTS
    if not spec.adaptive or not costs:
        return ""
    able = ", ".join(name for name in MODULES if backend(name).MERGES and not backend(name).FOLLOWING_COSTS)
    return (
        f"{spec.name} merges as many tokens as look alike in an image, which saves no time with {target.name}. "
        f"{costs}. Take a target of {able}, or merge a fixed number with --tokens, such as 4:60,8:60"
    )


def refused(target: Target) -> tuple[str, ...]:
    """Return what is wrong with a target as far as its runtime goes, a line each."""
    if target.backend not in MODULES:
        return (f"backend: got {target.backend!r}, allowed: {', '.join(map(repr, MODULES))}",)
    return backend(target.backend).refused(target)
