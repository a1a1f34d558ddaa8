"""What a gate is made of."""

from __future__ import annotations

import pytest

from edgevit.backends.onnxruntime.memory_bound import optimised
from edgevit.onnx_form.assemble import assemble
from edgevit.program.spec import PoolKind
from tests.tiny import tiny_program


@pytest.mark.parametrize("gate_pool", ["prefix", "mean"])
def test_a_gate_decides_in_few_nodes_and_packs_no_weight(gate_pool: PoolKind) -> None:
    program = tiny_program(gated=True, gate_pool=gate_pool)
    main = optimised(assemble(program))
    pooling = ["Gather"] if gate_pool == "prefix" else ["Slice", "ReduceMean"]
    for branch in program.spec.branches:
        nodes = [node for node in main.node if node.name.startswith(f"{branch.name}.gate/")]
        assert [node.op_type for node in nodes] == [*pooling, "LayerNormalization", "Gemm", "Greater"]
        assert nodes[-2].input[0] == f"{branch.name}.gate.weight"  # a constant second operand would be packed
