"""What a build proves when its target has another processor than this machine: the same graph, not its kernels."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence

from edgevit.backends import backend
from edgevit.schema.claims import Claim, ClaimName
from edgevit.schema.memory_bound import MemoryBound
from edgevit.schema.target import Target

# What of each claim hangs on the kernels that the target's processor picks.
OPEN: dict[ClaimName, str] = {
    "parity": "{arch} kernels round otherwise",
    "skip": "counted on {arch} by instructions",
    "coverage": "{arch} picks its own kernels",
    "bound": "{arch} packs weights otherwise",
    "accuracy": "{arch} kernels round otherwise",
}
SHOWS = "edgevit profile --device shows it there"


def qualified(
    claims: Sequence[Claim], bound: MemoryBound, target: Target, machine: str | None = None
) -> tuple[tuple[Claim, ...], MemoryBound]:
    """Say of every claim, and of the bound, on which machine it was proven; as they are where that is the target's.

    Machine code runs on the target's processor only, so that what was proven was proven there.

    Args:
        claims: proven on this machine.
        bound: computed for this machine's kernels.
        target: what was built for.
        machine: this machine's (None: as Python tells it).
    """
    here = machine or platform.machine()
    arch = target.arch
    if here == arch or backend(target.backend).NATIVE:
        return tuple(claims), bound
    said = tuple(
        dataclasses.replace(
            claim,
            summary=f"{claim.summary}; on {here} ({OPEN[claim.name].format(arch=arch)}: {SHOWS})",
            proven_on=here,
        )
        for claim in claims
    )
    covers = f"computed for the kernels of {here}, not proven for those of {arch}: {bound.covers}"
    return said, dataclasses.replace(bound, proven=False, covers=covers)
