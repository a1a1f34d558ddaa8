"""The memory bound of a TVM build: what its library says it needs, and what the runtime may add to run it.

No instruction and no kernel of the library can allocate (`backends/tvm/bytecode.py` refuses one that could), so on
every gate path a run touches only what it was given: arena, input and outputs. Weights are pages of a mapped file.
"""

from __future__ import annotations

from edgevit.schema.memory_bound import Bound

PROVEN = (
    "what a run touches on any gate path: the arena that the library is given, image and outputs, and an allowance for "
    "the virtual machine; and the weights, which are pages of a file"
)
# Registers of the virtual machine, frames of its calls, its stack and begun pages (measured: up to 0.03 MB).
MACHINE_BYTES = 1 << 16


def bound(*, arena: int, io: int, weights: int) -> Bound:
    """Bound a run by the bytes of its arena, of its inputs and outputs, and of the weights file."""
    touched = arena + io + MACHINE_BYTES
    return Bound(
        runtime="tvm",
        proven=PROVEN,
        weights_bytes=weights,
        arena_weights_bytes=0,
        activations_bytes=arena,
        scratch_bytes=MACHINE_BYTES,
        fragmentation_bytes=0,
        io_bytes=io,
        arena_bytes=touched,
        total_bytes=weights + touched,
        main_frame_bytes=arena,
        branches=(),
        timeline=(),
    )
