from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen import code as c  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call  # noqa: E402


def evaluate(build: Callable[[c.Code, Any], Any], x: np.ndarray) -> np.ndarray:
    """A vector function at every value of x, whose size is whole vectors."""
    code, source, target = c.Code(), c.buffer("x", x.size), c.buffer("y", x.size)
    with code.loop(x.size // AVX2.lanes) as i:
        value = build(code, c.load_vector(source, i * AVX2.lanes, AVX2.lanes))
        code.store_vector(target, i * AVX2.lanes, value, AVX2.lanes)
    y = np.zeros_like(x)
    call(code.function([source, target]), x, y)
    return y


def on_grid(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    return np.array([function(float(v)) for v in x])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


WIDE = np.concatenate([np.linspace(-12, 12, 80_000), np.linspace(-1e-3, 1e-3, 1_600)]).astype(np.float32)


def test_exp_is_as_accurate_as_stated() -> None:
    x = np.linspace(-87, 88, 160_000, dtype=np.float32)
    expected = on_grid(math.exp, x)
    relative = np.abs(evaluate(lambda code, v: c.exp(code, v, AVX2.lanes), x) - expected) / expected
    assert relative.max() < 2e-7


def test_exp_of_what_is_out_of_range_is_finite() -> None:
    x = np.array([-1e30, -1000, -88, -87.3, 89, 1000, 1e30, 0], dtype=np.float32)
    y = evaluate(lambda code, v: c.exp(code, v, AVX2.lanes), x)
    assert np.isfinite(y).all() and (y[:4] < 2e-38).all() and (y[:4] >= 0).all() and (y[4:7] > 1e38).all() and y[7] == 1


def test_erf_is_as_accurate_as_stated() -> None:
    error = np.abs(evaluate(lambda code, v: c.erf(code, v, AVX2.lanes), WIDE) - on_grid(math.erf, WIDE))
    assert error.max() < 4e-7


@pytest.mark.parametrize(
    ("kind", "exact"),
    [
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x * sigmoid(1.702 * x)),
        ("silu", lambda x: x * sigmoid(x)),
        ("relu", lambda x: max(x, 0.0)),
    ],
)
def test_activations(kind: Any, exact: Callable[[float], float]) -> None:
    got = evaluate(lambda code, v: c.activate(code, kind, v, AVX2.lanes), WIDE)
    assert (np.abs(got - on_grid(exact, WIDE)) / np.maximum(1, np.abs(WIDE))).max() < 5e-7
    assert evaluate(lambda code, v: c.activate(code, kind, v, AVX2.lanes), np.zeros(8, np.float32)).tolist() == [0] * 8


def test_what_is_rounded_to_8_bits_takes_a_gelu_that_does_not_divide() -> None:
    def coarse(code: c.Code, x: Any) -> Any:
        return c.activate(code, "gelu", x, AVX2.lanes, coarse=True)

    wide = np.concatenate([WIDE, np.linspace(-1000, 1000, 8_000, dtype=np.float32)])
    exact = on_grid(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))), wide)
    error = np.abs(evaluate(coarse, wide) - exact)
    assert error[: len(WIDE)].max() < 5e-4  # as its constants say
    assert (error - 2e-6 * np.abs(wide)).max() < 5e-4
    assert evaluate(coarse, np.zeros(8, np.float32)).tolist() == [0] * 8


def test_sums_and_largest_over_lanes() -> None:
    x = np.array([3, -1, 4, 1, -5, 9, 2, 6], dtype=np.float32)
    splat = AVX2.lanes
    assert evaluate(lambda code, v: c.splat(c.lane_sum(code, v, 8), splat), x).tolist() == [19] * 8
    assert evaluate(lambda code, v: c.splat(c.lane_max(code, v, 8), splat), x).tolist() == [9] * 8
    assert evaluate(lambda code, v: c.splat(c.lane_max(code, v, 8), splat), x - 20).tolist() == [-11] * 8


def test_a_loop_of_no_turn_emits_nothing_and_of_one_no_loop() -> None:
    code, target = c.Code(), c.buffer("y", 8)
    for extent, value in ((0, 1.0), (1, 2.0), (3, 3.0)):
        with code.loop(extent) as i:
            code.store(target, i + extent, c.number(value))
    function = code.function([target])
    assert str(function).count("for ") == 1
    y = np.zeros(8, np.float32)
    call(function, y)
    assert y.tolist() == [0, 2, 0, 3, 3, 3, 0, 0]
