"""The feed-forward network of a branch: two Linears, the activation function behind the first."""

from __future__ import annotations

from edgevit.backends.tvm.kernels.common import Epilogue
from edgevit.backends.tvm.kernels.merge import Sizes
from edgevit.backends.tvm.parts.stage import Shared, StageWriter, alive_of
from edgevit.program.spec import BranchSpec


def ffn(shared: Shared, stage: StageWriter, branch: BranchSpec, rows: int, sizes: Sizes | None = None) -> None:
    """Compute stream[:rows] += f(norm(stream[:rows]))."""
    alive = alive_of(sizes, rows)
    name, stream = branch.name, shared.stream.first(rows)
    weights = shared.program.weights
    first, second = (shared.entry(f"{name}.{part}") for part in ("fc1", "fc2"))
    normed = stage.input(first, rows, shared.spec.dim)
    hidden = stage.input(second, rows, branch.units)
    stage.norm(f"{name}.norm", stream, normed, alive=alive)
    fc1, fc2 = (weights[f"{name}.{part}.weight"] for part in ("fc1", "fc2"))
    inner = Epilogue(activation=branch.activation)
    stage.product("fc1", first, normed, hidden, fc1, weights[f"{name}.fc1.bias"], inner, alive)
    stage.product("fc2", second, hidden, stream, fc2, weights[f"{name}.fc2.bias"], Epilogue(onto=True), alive)
