from __future__ import annotations

import pytest

from edgevit.backends.tvm.run.trace import Call, kernel_calls
from edgevit.errors import SkipError
from edgevit.verify.skip import check_skip_nodes
from tests.tiny import tiny_images, tiny_program

WEIGHTS = ("stem", "b00_mhsa.gate", "head", "b00_mhsa", "b00_mhsa.skip")
Told = tuple[int, str, int, float]


def test_a_kernel_belongs_to_the_weights_it_is_given_else_to_the_function_around_it() -> None:
    told: list[Told] = [
        (0, "run_b00_mhsa", 3, 9.0),
        (1, "vm.builtin.check_tensor_info", 3, 0.1),
        (1, "qkv_3", 3, 2.0),
        (1, "attention_4", -1, 3.0),
        (0, "gate_7", 1, 0.5),
        (0, "vm.builtin.read_if_cond", -1, 0.1),
        (0, "run_b00_mhsa_skip", 4, 1.0),
        (1, "skip_8", 4, 0.2),
        (0, "attention_4", -1, 3.0),
    ]
    calls = kernel_calls(told, WEIGHTS)
    assert [(c.stage, c.kernel, c.ms) for c in calls] == [
        ("b00_mhsa", "qkv", 2.0),
        ("b00_mhsa", "attention", 3.0),
        ("b00_mhsa.gate", "gate", 0.5),
        ("b00_mhsa.skip", "skip", 0.2),
        ("main", "attention", 3.0),
    ]
    assert [c.node for c in calls] == [
        ("b00_mhsa/qkv", "Gemm"),
        ("b00_mhsa/attention", "MatMul"),
        ("b00_mhsa.gate/gate", "gate"),
        ("b00_mhsa/skipped", "skip"),
        ("main/attention", "MatMul"),
    ]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Call(stage="b00_mhsa", kernel="norm", ms=0.0), "b00_mhsa is closed .* still runs 1 nodes: b00_mhsa/norm"),
        (Call(stage="main", kernel="attention", ms=0.0), "1 matrix kernels ran that belong to no open branch"),
    ],
)
def test_what_runs_of_a_closed_branch_is_seen(call: Call, told: str) -> None:
    """A kernel with the branch's weights, and one without weights that was moved out of every function."""
    program = tiny_program(gated=True, depth=1)
    closed = [Call(stage="stem", kernel="stem", ms=0.0), Call(stage="b00_mhsa.gate", kernel="gate", ms=0.0)]

    def trace(calls: list[Call]) -> None:
        nodes = tuple(c.node for c in calls)
        images = tiny_images(program.spec, 1)
        gates = images[0, 0, :2, 0] * 0
        check_skip_nodes(program.spec, lambda image, effort: (nodes, gates), images)

    trace(closed)
    with pytest.raises(SkipError, match=told):
        trace([*closed, call])
