"""What a compiled model can allocate, read off its own bytecode: nothing but what its caller gives it.

Every path through the gates is a subset of the instructions, so what no instruction can do, no path does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgevit.backends.tvm.inspect.shipped import Shipped
from edgevit.backends.tvm.run.asked import MATH, PLAIN, POOLED
from edgevit.backends.tvm.run.runner import Manifest
from edgevit.errors import BoundError

# Checks of arguments, the branch itself, and the copy of a reference: none of them makes a tensor.
HARMLESS = frozenset(
    f"vm.builtin.{name}" for name in ("check_tensor_info", "match_shape", "read_if_cond", "copy", "make_tuple")
)
# What a kernel needs to ask the runtime for memory.
ALLOCATOR = re.compile(r"Alloc|malloc|calloc|_Znw")
FUNCTION = re.compile(r"^@(\S+):$")
CALL = re.compile(r"^\s+call\s+(\S+)\s+in:")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one run needs, over every path. `weights` are mapped from their file and read page by page.

    The arena holds what every thread has of its own; threads' stacks and queues are the runtime's, which has them from
    loading on, and are not in here.
    """

    arena: int
    inputs: int
    outputs: int
    weights: int

    @property
    def activations(self) -> int:
        return self.arena + self.inputs + self.outputs


def calls(text: str) -> dict[str, tuple[str, ...]]:
    """Return the functions of a library in textual bytecode, with what each of them calls, in order."""
    found: dict[str, list[str]] = {}
    inside: list[str] | None = None
    for line in text.splitlines():
        if name := FUNCTION.match(line):
            inside = found.setdefault(name[1], [])
        elif (call := CALL.match(line)) and inside is not None:
            inside.append(call[1])
        elif line.startswith("@"):
            inside = None
    return {name: tuple(called) for name, called in found.items()}


def bound(shipped: Shipped, manifest: Manifest) -> Memory:
    """Return the memory of a compiled model, read from the library that ships.

    Raises:
        BoundError: an instruction calls what might allocate, or a kernel could ask for memory; names it.
    """
    if not shipped.text:
        _check_asked(shipped)
    functions = calls(shipped.text)
    if shipped.text and "main" not in functions:
        raise BoundError("the library has no function main; compile it again")
    for name, called in functions.items():
        _check(name, called, functions, shipped)
    allocators = sorted(name for name in shipped.symbols if ALLOCATOR.search(name))
    if allocators:
        raise BoundError(f"kernels of the library can allocate, by {', '.join(allocators)}: no memory bound")
    return Memory(
        arena=4 * manifest.arena,
        inputs=manifest.height * manifest.width * 3 + 4,
        outputs=4 * (manifest.classes + manifest.points) + manifest.branches,
        weights=4 * sum(p.elements for p in manifest.weights),
    )


def _check_asked(shipped: Shipped) -> None:
    """A library of its own takes memory by asking the system's for it, or not at all."""
    if other := sorted(shipped.asked - PLAIN - MATH - POOLED):
        raise BoundError(f"the library asks for {', '.join(other)}, which may allocate: no memory bound")


def _check(name: str, called: tuple[str, ...], functions: Mapping[str, tuple[str, ...]], shipped: Shipped) -> None:
    for callee in called:
        if callee in functions or callee in HARMLESS:
            continue
        if callee.startswith("vm.") or not shipped.has_kernel(callee):
            raise BoundError(
                f"{name} calls {callee}, which may allocate: no memory bound; only kernels of the library and "
                f"{', '.join(sorted(HARMLESS))} are known not to"
            )
