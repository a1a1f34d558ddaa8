"""Memory as a budget: how much of a model may stay so that its build's bound fits into so many bytes."""

from __future__ import annotations

import re

from edgevit.backends import MODULES, desk
from edgevit.build.prediction import bound_bytes, gated, scaled
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.spec import ProgramSpec
from edgevit.schema.target import Target

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
PRECISION = 0.01  # of the units of a branch


def parse_bytes(text: str) -> int:
    """Read `3.0MiB`, `3MB`, `512 KiB` or `2500000`.

    Raises:
        BudgetError: anything else, or nothing.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", text.strip())
    scale = None if match is None else UNITS.get(match[2].lower())
    if match is None or scale is None or float(match[1]) * scale < 1:
        raise BudgetError(
            f"memory of {text!r} is no size; allowed: a number with B, KB, MB, KiB or MiB, such as 3.0MiB"
        )
    return int(float(match[1]) * scale)


def fits(spec: ProgramSpec, target: Target, limit_bytes: int) -> bool:
    """Return whether the memory bound of a build of this structure (int8, gates as they are) is within the limit."""
    found = bound_bytes(spec, target)
    return found is not None and found <= limit_bytes


def static_for(spec: ProgramSpec, target: Target, limit_bytes: int) -> float:
    """Return MACs, as a fraction of `spec`'s, of the largest evenly scaled gated model whose bound is within the limit.

    Raises:
        BudgetError: the runtime has no bound, or stem and head alone need more.
    """
    floor = bound_bytes(gated(scaled(spec, 0.0)), target)
    if floor is None:
        bounded = " or ".join(name for name in MODULES if desk(name).BOUNDED)
        raise BudgetError(
            f"target {target.name} runs on {target.backend}, which has no memory bound; give --memory with a target on "
            f"{bounded}, or --static"
        )
    if floor > limit_bytes:
        raise BudgetError(
            f"{limit_bytes} bytes cannot hold {spec.name} on {target.name}: stem and head, which are not pruned, need "
            f"{floor} bytes ({floor / 2**20:.2f} MiB); ask for more than that"
        )
    if fits(gated(spec), target, limit_bytes):
        return 1.0
    low, high = 0.0, 1.0
    while high - low > PRECISION:
        share = (low + high) / 2
        low, high = (share, high) if fits(gated(scaled(spec, share)), target, limit_bytes) else (low, share)
    return total_macs(scaled(spec, low)) / total_macs(spec)
