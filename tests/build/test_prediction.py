"""A dry run's sizes are those of the structure it predicts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.build.prediction import predict
from edgevit.errors import BudgetError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.schema.target import load_target
from tests.tiny import tiny_program

TARGET = load_target("x86-64-onnxruntime")


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 0.6))
def test_pruning_is_predicted_within_the_budget(fraction: float) -> None:
    program = tiny_program(depth=4, dim=64, heads=4, hidden=256)
    predicted = predict(program, TARGET, prune=fraction)
    assert predicted.all_open_macs <= total_macs(program.spec) * (1 - fraction) + 1
    assert predicted.dense_macs == total_macs(program.spec)


def test_a_smaller_model_needs_less() -> None:
    program = tiny_program(depth=4, dim=64, heads=4, hidden=256)
    whole, pruned = predict(program, TARGET), predict(program, TARGET, prune=0.4)
    assert pruned.model_bytes < whole.model_bytes
    assert pruned.bound_bytes is not None
    assert whole.bound_bytes is not None
    assert pruned.bound_bytes < whole.bound_bytes
    assert whole.int8_linears == whole.linears == 18


def test_gates_scale_the_expected_macs() -> None:
    program = tiny_program(depth=4, dim=64, heads=4, hidden=256)
    gated = predict(program, TARGET, gate=0.7)
    assert gated.expected_macs == pytest.approx(0.7 * gated.all_open_macs)
    assert gated.all_open_macs > total_macs(program.spec)  # the gates themselves


def test_a_budget_below_stem_and_head_is_refused_with_the_possible_one() -> None:
    program = tiny_program()
    floor = total_macs(program.spec) - sum(macs_by_branch(program.spec))
    with pytest.raises(BudgetError, match="at most"):
        predict(program, TARGET, prune=1 - 0.5 * floor / total_macs(program.spec))


def test_openvino_has_no_bound_to_predict() -> None:
    assert predict(tiny_program(), load_target("x86-64-openvino")).bound_bytes is None


def test_gates_that_are_there_already_are_not_guessed() -> None:
    assert predict(tiny_program(gated=True), TARGET).expected_macs is None
