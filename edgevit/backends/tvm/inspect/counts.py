"""Is int8 really int8: instructions counted in the machine code of every int8 Linear's kernels.

A kernel must have at least the multiplying instructions of its inner loops, one loop per shape of tile; a compiler may
unroll them and have more. Where a kernel is missing, or is something else than what was asked for, it has fewer.

The code is that of the library that ships, disassembled; what a disassembler is too old to know, the compiler's own
assembler writes, which takes as long as compiling does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.backends.tvm.compile.emit import Lowered
from edgevit.backends.tvm.compile.toolchain import Toolchain
from edgevit.errors import OutputError, RuntimeMissingError

# Assemblers write a prefix in braces before an instruction that has two encodings, disassemblers an address before it.
LINE = r"^\s+(?:[0-9a-f]+:\s+)?(?:\{\w+\}\s+)?(?:%s)\b"


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


def count_int8(lowered: Lowered, text: str) -> tuple[KernelCount, ...]:
    """Count in what `assembly` or `disassembly` wrote."""
    found = dict.fromkeys((name, counted.mnemonic) for name, counted in lowered.int8)
    counts = {(name, mnemonic): count(text, name, mnemonic) for name, mnemonic in found}
    return tuple(
        KernelCount(
            linear=counted.linear,
            kernel=name,
            mnemonic=counted.mnemonic,
            found=counts[name, counted.mnemonic],
            at_least=counted.at_least,
        )
        for name, counted in lowered.int8
    )


def linear_kernels(lowered: Lowered, executable: Any, archive: Path, tools: Toolchain) -> tuple[tuple[str, bool], ...]:
    """Return (name of the Linear, `/`, name of the kernel; runs as int8), as `verify.coverage` takes them.

    Args:
        lowered: the model.
        executable: what `library.build` made of it.
        archive: the static library that was linked from it.
        tools: what compiled that, with a disassembler.
    """
    found = count_int8(lowered, disassembly(archive, tools))
    if not all(each.int8 for each in found):
        found = count_int8(lowered, assembly(executable))
    return named(found)


def named(found: Sequence[KernelCount]) -> tuple[tuple[str, bool], ...]:
    """Return counts as `linear_kernels` does."""
    return tuple((f"{each.linear}/{each.kernel}", each.int8) for each in found)


def disassembly(archive: Path, tools: Toolchain) -> str:
    """Return the code of a static library; nothing where there is no tool that reads it."""
    try:
        return tools.tool("objdump", "-d", "--no-show-raw-insn", archive)
    except (OutputError, RuntimeMissingError):
        return ""


def assembly(executable: Any) -> str:
    """Return the code of all kernels as the compiler's assembler writes it."""
    modules = [getattr(executable, "mod", executable)]
    for module in modules:
        modules.extend(module.imports)
    return "".join(str(module.inspect_source("asm")) for module in modules if module.kind == "llvm")


def count(text: str, kernel: str, mnemonic: str) -> int:
    """Return how often an instruction (a regular expression) stands in the code of a kernel."""
    return len(re.findall(LINE % mnemonic, body(text, kernel), flags=re.MULTILINE))


def body(text: str, kernel: str) -> str:
    """Return the lines of one kernel, and of what it lets several threads run; empty where there is no such kernel."""
    label = rf"{re.escape(kernel)}(?:_compute_)?"
    own = "".join(re.findall(rf"^[0-9a-f]+ <{label}>:\n(.*?)(?:^\n|\Z)", text, re.MULTILINE | re.DOTALL))
    if own:
        return own  # what threads run has no name in a library, and follows the kernel that it is of
    own = _function(text, label)
    shared = dict.fromkeys(re.findall(r"[\w.]*__tvm_parallel_lambda[\w.]*", own))
    return own + "".join(_function(text, re.escape(name)) for name in shared)


def _function(assembly: str, label: str) -> str:
    found = re.search(rf"^{label}:\n(.*?)^\.Lfunc_end", assembly, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""
