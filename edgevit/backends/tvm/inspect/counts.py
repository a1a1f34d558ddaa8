"""Is int8 really int8: instructions counted in the machine code of every int8 Linear's kernels.

A kernel must have at least the multiplying instructions of its inner loops, one loop per shape of tile; a compiler may
unroll them and have more. Where a kernel is missing, or is something else than what was asked for, it has fewer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgevit.backends.tvm.compile.emit import Lowered

# Assemblers write a prefix in braces before an instruction that has two encodings.
LINE = r"^\s+(?:\{\w+\}\s+)?(?:%s)\b"


@dataclass(frozen=True, kw_only=True)
class KernelCount:
    """`found` instructions of a mnemonic in a kernel of one Linear; int8 means `at_least` so many."""

    linear: str
    kernel: str
    mnemonic: str
    found: int
    at_least: int

    @property
    def int8(self) -> bool:
        return self.found >= self.at_least


def count_int8(lowered: Lowered, executable: Any) -> tuple[KernelCount, ...]:
    """Count in the code of what `library.build` compiled."""
    text = assembly(executable)
    return tuple(
        KernelCount(
            linear=counted.linear,
            kernel=name,
            mnemonic=counted.mnemonic,
            found=count(text, name, counted.mnemonic),
            at_least=counted.at_least,
        )
        for name, counted in lowered.int8
    )


def linear_kernels(lowered: Lowered, executable: Any) -> tuple[tuple[str, bool], ...]:
    """Return (name of the Linear, `/`, name of the kernel; runs as int8), as `verify.coverage` takes them."""
    return tuple((f"{found.linear}/{found.kernel}", found.int8) for found in count_int8(lowered, executable))


def assembly(executable: Any) -> str:
    """Return the code of all kernels as the compiler's assembler writes it."""
    modules = [getattr(executable, "mod", executable)]
    for module in modules:
        modules.extend(module.imports)
    return "".join(str(module.inspect_source("asm")) for module in modules if module.kind == "llvm")


def count(assembly: str, kernel: str, mnemonic: str) -> int:
    """Return how often an instruction (a regular expression) stands in the code of a kernel."""
    return len(re.findall(LINE % mnemonic, body(assembly, kernel), flags=re.MULTILINE))


def body(assembly: str, kernel: str) -> str:
    """Return the lines of one kernel, and of what it lets several threads run; empty where there is no such kernel."""
    own = _function(assembly, rf"{re.escape(kernel)}(?:_compute_)?")
    shared = dict.fromkeys(re.findall(r"[\w.]*__tvm_parallel_lambda[\w.]*", own))
    return own + "".join(_function(assembly, re.escape(name)) for name in shared)


def _function(assembly: str, label: str) -> str:
    found = re.search(rf"^{label}:\n(.*?)^\.Lfunc_end", assembly, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""
