"""What a run really calls, as the library tells it: every kernel, whose weights it was given, and its time.

A kernel's branch is not taken from the program but from the weights that it is given, so a branch body that a compiler
moved out of its `If` shows under its own name. Kernels without weights belong to the function around them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Kernels that multiply matrices, by the name that the stages give them.
OPERATORS = {
    **dict.fromkeys(("stem", "qkv", "q", "kv", "proj", "fc1", "fc2", "merge", "head"), "Gemm"),
    "attention": "MatMul",
}
BUILTIN, FUNCTION = "vm.builtin.", "run_"
OUTSIDE = "main"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kernel call. `stage` is whose weights it reads, e.g. `b00_mhsa` or `b00_mhsa.gate`; `main`: nobody's.

    `grown_bytes` is by how much the process had grown after it since loading, told of its first run only.
    """

    stage: str
    kernel: str
    ms: float
    grown_bytes: int | None = None

    @property
    def node(self) -> tuple[str, str]:
        """Return (name, operator) as the skip verifier reads them."""
        branch, dot, part = self.stage.partition(".")
        name = f"{branch}/skipped" if part == "skip" else f"{branch}{dot}{part}/{self.kernel}"
        return name, OPERATORS.get(self.kernel, self.kernel)


def kernel_calls(told: Sequence[tuple[Any, ...]], weights: Sequence[str]) -> tuple[Call, ...]:
    """Return the kernels among the calls of one run, in order.

    Args:
        told: (how deep, name, index of the weights it was given or -1, milliseconds, bytes grown where that is told)
            of every call as it begins.
        weights: names of the weights, in order.
    """
    found, around = [], [OUTSIDE]
    for depth, name, index, ms, *grown in told:
        stage = weights[index] if index >= 0 else around[depth]
        around[depth + 1 :] = [stage]
        if not name.startswith((BUILTIN, FUNCTION)):
            kernel = re.sub(r"_\d+$", "", name)
            found.append(Call(stage=stage, kernel=kernel, ms=ms, grown_bytes=grown[0] if grown else None))
    return tuple(found)
