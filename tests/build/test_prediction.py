"""A dry run's sizes are those of the structure it predicts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevit.build.prediction import predict, scaled
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
    with pytest.raises(BudgetError, match="at least"):
        predict(program, TARGET, prune=1 - 0.5 * floor / total_macs(program.spec))


@pytest.mark.parametrize("left", [0.2, 0.3, 0.4, 0.6])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_pruning_is_predicted_near_the_budget_however_few_heads_there_are(left: float, heads: int) -> None:
    program = tiny_program(depth=12, dim=48, heads=heads, hidden=192, image=(64, 64))
    predicted = predict(program, TARGET, prune=1 - left)
    assert 0.75 * left < predicted.all_open_macs / predicted.dense_macs <= left


def test_a_third_is_one_head_of_three() -> None:
    spec = tiny_program(depth=4, dim=48, heads=3).spec
    assert [branch.units for branch in scaled(spec, 1 / 3).branches if branch.kind == "mhsa"] == [1] * 4
    assert scaled(spec, 1.0) == spec and not any(branch.units for branch in scaled(spec, 0.0).branches)


def test_the_least_that_pruning_can_leave_can_be_asked_for() -> None:
    program = tiny_program()
    with pytest.raises(BudgetError, match="at least") as caught:
        predict(program, TARGET, prune=0.999)
    least = float(str(caught.value).split()[-3].rstrip("%")) / 100
    assert predict(program, TARGET, prune=1 - least).dense_macs == total_macs(program.spec)


@pytest.mark.parametrize(
    ("options", "less_when"),
    [
        ({}, ""),
        ({"tokens": "1:4"}, ""),
        ({"tokens": "1:0-4@0.8"}, "an image merges more tokens"),
        ({"gated": True}, "gates close"),
        ({"gated": True, "tokens": "1:0-4@0.8"}, "gates close or an image merges more tokens"),
    ],
)
def test_what_makes_it_cheaper_is_said(options: dict[str, Any], less_when: str) -> None:
    predicted = predict(tiny_program(depth=3, **options), TARGET)
    assert predicted.less_when == less_when and (predicted.expected_macs is None) == bool(less_when)


def test_openvino_has_no_bound_to_predict() -> None:
    assert predict(tiny_program(), load_target("x86-64-openvino")).bound_bytes is None


def test_gates_that_are_there_already_are_not_guessed() -> None:
    assert predict(tiny_program(gated=True), TARGET).expected_macs is None
