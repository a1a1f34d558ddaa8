from __future__ import annotations

import numpy as np
import pytest

from edgevit.quantize.plan import plan_quantization
from edgevit.schema.quant_plan import LinearPlan, linear_names
from edgevit.tasks.sensitivity import drift, sensitivity, with_linear
from tests.quantize.watched import OUTLIER, evaluator, watched, with_outlier
from tests.tiny import tiny_program


def test_no_drift_between_equal_logits_nor_under_a_shift() -> None:
    x = np.random.default_rng(0).standard_normal((5, 10)).astype(np.float32)
    same, shifted = drift(x, x), drift(x, x + 7)
    assert (same.kl, same.agreement, same.images) == (0, 1, 5) and same.cosine == pytest.approx(1)
    assert shifted.kl == pytest.approx(0, abs=1e-6) and shifted.agreement == 1


def test_drift_of_known_probabilities() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    got = drift(np.log(p), np.log(q))
    assert got.kl == pytest.approx(0.25 * np.log(2)) and got.agreement == 0


def test_huge_logits_do_not_overflow() -> None:
    assert drift(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]])).kl == pytest.approx(1e4)


def test_one_logit_drifts_as_a_class_against_none() -> None:
    """Alone its probability is always 1, and no error of it would ever count."""
    one, moved = np.array([[0.0], [2.0]]), np.array([[1.0], [-1.0]])
    beside = [np.hstack([values, np.zeros((2, 1))]) for values in (one, moved)]
    got = drift(one, moved)
    assert got.kl == pytest.approx(drift(*beside).kl) and got.kl > 0.1
    assert got.agreement == 0.5


def test_the_linear_with_the_outlier_hurts_most_alone() -> None:
    program = with_outlier(tiny_program())
    plan = plan_quantization(program, watched(program), range_method="minmax", max_outliers=0)
    drifts = sensitivity(plan, evaluator(program), linear_names(program.spec))
    worst, second = sorted(drifts, key=lambda name: -drifts[name].kl)[:2]
    assert worst == OUTLIER[0] and drifts[worst].kl > 5 * drifts[second].kl


def test_with_linear_replaces_one_entry() -> None:
    program = tiny_program()
    plan = plan_quantization(program, watched(program))
    changed = with_linear(plan, LinearPlan(name="b00_ffn.fc1", int8=False))
    assert [p.name for p in changed.linears] == [p.name for p in plan.linears]
    assert [p.name for p in changed.linears if not p.int8] == ["b00_ffn.fc1"]
