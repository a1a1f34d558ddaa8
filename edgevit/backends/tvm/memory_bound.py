"""The memory bound of a TVM build: what its library says it needs, and what the runtime may add to run it.

No instruction and no kernel of the library can allocate (`backends/tvm/bytecode.py` refuses one that could), so on
every gate path a run touches only what it was given: arena, input and outputs. Weights are pages of a mapped file.
Where the number of tokens follows the image, places in the arena are those of an image that keeps as many as may be.
"""

from __future__ import annotations

from edgevit.schema.memory_bound import BoundDetail, MemoryBound

COVERS = (
    "what a run touches on any gate path: the arena that the library is given, image and outputs, and an allowance for "
    "the virtual machine; and the weights, which are pages of a file"
)
# Registers of the virtual machine, frames of its calls, its stack and begun pages (measured: up to 0.03 MB).
MACHINE_BYTES = 1 << 16


def bound(*, arena: int, io: int, weights: int) -> BoundDetail:
    """Bound a run by the bytes of its arena, of its inputs and outputs, and of the weights file."""
    touched = arena + io + MACHINE_BYTES
    return BoundDetail(
        bound=MemoryBound(
            bound_bytes=weights + touched,
            weights_bytes=weights,
            activations_bytes=arena,
            scratch_bytes=MACHINE_BYTES,
            io_bytes=io,
            arena_bytes=touched,
            proven=True,
            covers=COVERS,
        ),
        main_frame_bytes=arena,
    )
