"""LayerNorm and activation functions that end in int8 on ARM: the integers that float and rounding would give."""

from __future__ import annotations

from math import erf
from pathlib import Path

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.dots import dot  # noqa: E402
from edgevit.backends.tvm.codegen.integers import Integers, place_integers  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena, Blob, pad_columns  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Product, default_tile, isa, pad  # noqa: E402
from edgevit.backends.tvm.kernels import int8, norm_neon  # noqa: E402
from edgevit.backends.tvm.kernels.common import Epilogue  # noqa: E402
from edgevit.backends.tvm.kernels.int8_neon import add_curve, distance  # noqa: E402
from edgevit.program.spec import Activation  # noqa: E402
from edgevit.schema.quant_plan import LinearPlan, QuantPlan  # noqa: E402
from tests.backends.tvm import crossed  # noqa: E402
from tests.backends.tvm.compiled import matrix  # noqa: E402
from tests.backends.tvm.kernels.test_int8 import fill, integers  # noqa: E402

RNG = np.random.default_rng(0)
CPUS = [("neon", "cortex-a53"), ("dotprod", "cortex-a76"), ("i8mm", "max,sve=off,sme=off")]


def entry(scale: float, zero: int, outliers: tuple[int, ...] = ()) -> LinearPlan:
    return LinearPlan(name="fc", int8=True, scale=scale, zero_point=zero, outliers=outliers)


def place(name: str, arena: Arena, blob: Blob, shape: tuple[int, int], plan: LinearPlan) -> Integers:
    how = dot(isa(name), 8)
    return place_integers(arena, blob, *shape, how.depth, how.stored, QuantPlan(linears=(plan,)), plan, how.together)


@pytest.mark.parametrize(("name", "cpu"), CPUS)
@pytest.mark.parametrize(("rows", "width", "kept"), [(13, 48, ()), (7, 20, (3, 17))])
def test_layer_norm_ends_in_steps(
    name: str, cpu: str, rows: int, width: int, kept: tuple[int, ...], tmp_path: Path
) -> None:
    arena, blob = Arena(4), Blob()
    source, target = arena.place(rows, width), place(name, arena, blob, (rows, width), entry(0.03, 100, kept))
    gain, shift = RNG.standard_normal((2, width)).astype(np.float32)
    made = (gain, shift, gain / np.float32(0.03), shift / np.float32(0.03) + np.float32(target.zero))
    scale, offset, *steps = (blob.add(pad_columns(row, pad(width, 4))) for row in made)
    arguments = (source, target, width, scale, offset, 1e-6, (steps[0], steps[1]))
    function = norm_neon.layer_norm(isa(name), arena.size, blob.size, *arguments)
    memory = np.zeros(arena.size, np.float32)
    x = matrix(memory, source)
    x[...] = 3 * RNG.standard_normal((rows, width)) + 1
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-6) * gain + shift
    crossed.call(function, memory, blob.array(), isa(name), cpu, tmp_path)
    expected = np.clip(np.rint(exact / 0.03) + target.zero, -128, 127)
    got = integers(memory, target)[:, :width]
    assert np.abs(got - expected).max() <= 1 and (got == expected).mean() > 0.99
    if kept:
        assert target.exact is not None
        np.testing.assert_allclose(matrix(memory, target.exact), exact[:, kept], atol=1e-5)


@pytest.mark.parametrize(("name", "cpu"), CPUS)
@pytest.mark.parametrize(
    ("shape", "kind", "outliers", "kept"),
    [((13, 48, 48), "gelu", (), ()), ((5, 40, 24), "gelu", (3, 9), (5, 22)), ((29, 64, 96), "relu", (), ())],
)
def test_an_activation_function_is_looked_up(
    name: str,
    cpu: str,
    shape: tuple[int, int, int],
    kind: Activation,
    outliers: tuple[int, ...],
    kept: tuple[int, ...],
    tmp_path: Path,
) -> None:
    (rows, depth, columns), step = shape, 0.02
    arena, blob, made = Arena(4), Blob(), isa(name)
    how, first = dot(made, 8), entry(0.03, 120, outliers)
    source, target = (
        place(name, arena, blob, (rows, depth), first),
        place(name, arena, blob, (rows, columns), entry(step, 20, kept)),
    )
    weight = (0.08 * RNG.standard_normal((depth, columns))).astype(np.float32)
    bias = RNG.standard_normal(columns).astype(np.float32)
    tile = default_tile(made, Product(rows=rows, columns=pad(columns, 4), depth=depth, dot=how))
    weights = int8.add_weights(blob, weight, bias, QuantPlan(linears=(first,)), first, how, tile, (kind, step))
    assert weights.curve is not None
    arguments = (source, target, weights, how, tile, Epilogue(activation=kind))
    function = int8.product(made, arena.size, blob.size, *arguments)
    memory = np.zeros(arena.size, np.float32)
    stored = RNG.integers(0, 256, (rows, depth))
    fill(memory, source, (stored - 128).astype(np.int8))
    x, out = (stored - 120.0) * 0.03, list(outliers)
    if out:
        assert source.exact is not None
        x[:, out] = matrix(memory, source.exact)[...] = (20 * RNG.standard_normal((rows, len(out)))).astype(np.float32)
    crossed.call(function, memory, blob.array(), made, cpu, tmp_path)
    regular = weight.copy()
    regular[out] = 0
    values, scale = int8.quantize_weight(regular, 8)
    exact = values * scale.astype(np.float64)
    exact[out] = weight[out]
    y = x @ exact + np.rint(bias / (scale * 0.03)) * (scale * 0.03)
    y = np.maximum(y, 0) if kind == "relu" else y * 0.5 * (1 + np.vectorize(erf)(y * np.sqrt(0.5)))
    wanted = np.clip(y / step + target.zero, -128, 127)
    got = integers(memory, target)[:, :columns]
    # Rounding alone is 0.29 steps off, here up to 0.32: a hundred values are few.
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.35 and np.abs(got - wanted).max() < 1
    if kept:
        assert target.exact is not None
        np.testing.assert_allclose(matrix(memory, target.exact), y[:, list(kept)], atol=1e-4)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"])
def test_functions_are_relu_less_the_same_on_both_sides(kind: Activation) -> None:
    x = np.linspace(0, 30, 301)
    assert (distance(kind, x) >= 0).all() and distance(kind, x)[-1] < 1e-9
    if kind == "silu":
        np.testing.assert_allclose(distance(kind, x), -(-x / (1 + np.exp(x))), atol=1e-12)


def test_what_does_not_fit_16_bits_stays_float() -> None:
    scale = np.full(8, 1e-4, np.float32)
    assert add_curve(Blob(), "gelu", scale, 0.02) is not None
    assert add_curve(Blob(), "gelu", scale, 1e-5) is None, "the hump has more steps than a byte"
    assert add_curve(Blob(), "gelu", scale * 1e4, 0.02) is None, "a sum's step is more than one of the target's"


def test_a_bias_that_dwarfs_its_column_fits_the_sums() -> None:
    first, blob, how = entry(0.03, 120), Blob(), dot(isa("dotprod"), 8)
    weight, bias = np.zeros((16, 8), np.float32), np.full(8, 100.0, np.float32)
    tile = default_tile(isa("dotprod"), Product(rows=4, columns=8, depth=16, dot=how))
    weights = int8.add_weights(blob, weight, bias, QuantPlan(linears=(first,)), first, how, tile)
    values = blob.array()
    start = values[weights.start : weights.start + 8].view(np.int32)
    scale = values[weights.scale : weights.scale + 8]
    np.testing.assert_allclose(start * scale.astype(np.float64), bias, rtol=1e-6)
