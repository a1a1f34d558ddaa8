"""Vectors of a row as bytes: rounded to even, clipped at both ends, in order, on what instruction sets run here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.code import Code, buffer, load_vector  # noqa: E402
from edgevit.backends.tvm.codegen.integers import place_integers  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena, Blob  # noqa: E402
from edgevit.backends.tvm.codegen.narrow import narrowed, put_vectors, rounded  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from tests.backends.tvm.compiled import HERE, call, matrix  # noqa: E402
from tests.backends.tvm.kernels.test_int8 import integers  # noqa: E402

X86 = [name for name in HERE if isa(name).target["mtriple"].startswith("x86_64")]
ENDS = [-np.inf, -1e30, -3e9, -128.5, -128, -127.5, -0.5, -0.0, 0.5, 1.5, 126.5, 127.5, 254.5, 255.5, 256, 3e9, 1e30]


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize(("stored", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_four_vectors_become_one_in_their_order(name: str, stored: str, low: int, high: int) -> None:
    made = isa(name)
    lanes, code = made.lanes, Code()
    memory, bytes_ = buffer("memory", 4 * lanes), buffer("bytes", lanes)
    vectors = [code.let(rounded(load_vector(memory, v * lanes, lanes), lanes)) for v in range(4)]
    code.store_vector(bytes_, 0, narrowed(code, vectors, stored), lanes)
    x = np.resize(np.arange(-300, 300, 4.5), 4 * lanes).astype(np.float32)
    got = np.zeros(lanes, np.float32)
    call(code.function([memory, bytes_]), x, got, isa=made)
    np.testing.assert_array_equal(got.view(stored), np.clip(np.rint(x), low, high))


@pytest.mark.parametrize("name", X86)
@pytest.mark.parametrize("vectors", [1, 4, 5, 8, 11])
def test_a_row_is_rounded_as_one_vector_alone_is(name: str, vectors: int) -> None:
    """With columns that are kept, among them the first and the last one, at all ends of the range."""
    made = isa(name)
    width = vectors * made.lanes
    kept = tuple(sorted({0, width // 2, width - 1}))
    entry = LinearPlan(name="fc2", int8=True, scale=0.5, zero_point=100, outliers=kept)
    arena, blob, plan = Arena(made.lanes), Blob(), QuantPlan(linears=(entry,), weight_bits=8)
    source, before = arena.place(3, width), arena.place(1, made.lanes)
    target = place_integers(arena, blob, 3, width, 4, "uint8", plan, entry)
    after = arena.place(1, made.lanes)
    code, memory, values = Code(), buffer("arena", arena.size), buffer("weights", blob.size)
    with code.loop(3) as row:
        base = source.offset + row * source.stride
        found = [load_vector(memory, base + v * made.lanes, made.lanes) for v in range(vectors)]
        put_vectors(code, memory, values, target, row, 0, found, made.lanes)
    held = np.full(arena.size, 7, np.float32)
    x = np.resize(np.array([*ENDS, np.inf], np.float32) / 2, (3, width))
    matrix(held, source)[...] = x
    call(code.function([memory, values]), held, blob.array(), isa=made)
    expected = np.clip(np.rint(np.clip(x.astype(np.float64) / 0.5 + 100, -9, 999)), 0, 255)
    np.testing.assert_array_equal(integers(held, target)[:, :width], expected)
    assert target.exact is not None
    np.testing.assert_array_equal(matrix(held, target.exact), x[:, kept])
    for place in (before, after):
        assert (matrix(held, place) == 7).all()


@pytest.mark.parametrize("name", X86)
def test_values_that_stay_near_need_no_limit_above(name: str) -> None:
    made = isa(name)
    entry = LinearPlan(name="fc2", int8=True, scale=0.5, zero_point=100)
    found = []
    for bounded in (False, True):
        arena, blob = Arena(made.lanes), Blob()
        source = arena.place(1, 4 * made.lanes)
        place = place_integers(arena, blob, 1, source.width, 4, "uint8", QuantPlan(linears=(entry,)), entry)
        code, memory, values = Code(), buffer("arena", arena.size), buffer("weights", blob.size)
        vectors = [load_vector(memory, source.offset + v * made.lanes, made.lanes) for v in range(4)]
        put_vectors(code, memory, values, replace(place, bounded=bounded), 0, 0, vectors, made.lanes)
        held = np.zeros(arena.size, np.float32)
        matrix(held, source)[...] = np.resize(np.array([-5e8, -50.25, 0.25, 77.75, 5e8], np.float32), source.width)
        call(code.function([memory, values]), held, blob.array(), isa=made)
        found.append((str(code.function([memory, values])).count("min("), integers(held, place).copy()))
    assert found[0][0] > found[1][0] == 0
    np.testing.assert_array_equal(found[0][1], found[1][1])
