"""Attention with its scores in registers: what numpy makes of the same integers, and of the keys that there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.dots import dot  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Alive, Arena  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Product, default_tile, isa  # noqa: E402
from edgevit.backends.tvm.inspect.counts import count  # noqa: E402
from edgevit.backends.tvm.kernels import attention_int8, attention_registers  # noqa: E402
from edgevit.backends.tvm.kernels.attention_int8 import instructions  # noqa: E402
from edgevit.backends.tvm.kernels.heads import MASKED, Heads  # noqa: E402
from tests.backends.tvm.compiled import HERE, call, matrix  # noqa: E402
from tests.backends.tvm.kernels.test_attention_int8 import Case  # noqa: E402
from tests.backends.tvm.kernels.test_int8 import assembly  # noqa: E402

RNG = np.random.default_rng(0)
WIDE = ("avx512", "avx512vnni")
# Odd numbers, one of everything, heads of which only some columns are used, as many keys as fit, two vectors of words.
SHAPES = [(197, 197, 1, 64), (30, 30, 3, 50), (1, 50, 2, 64), (7, 9, 2, 128), (3, 464, 1, 64), (1, 1, 1, 60)]


def here(name: str) -> str:
    if name not in HERE:
        pytest.skip(f"runs on a processor with {name} only")
    return name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, -200.0])
@pytest.mark.parametrize("name", WIDE)
def test_it_is_what_numpy_makes_of_the_same_integers(name: str, shape: tuple[int, int, int, int], shift: float) -> None:
    wide = isa(here(name))
    case = Case(wide, *shape, shift, attention_registers)
    call(case.function, case.memory, np.zeros(16, np.float32), isa=wide)
    case.check()


@pytest.mark.parametrize("name", WIDE)
def test_scores_of_any_size_come_out(name: str) -> None:
    """Rows of zeros, and scores so far apart that powers of 2 end."""
    wide = isa(here(name))
    case = Case(wide, 9, 40, 1, 64, 0.0, attention_registers)
    query, key = (case.memory[place.offset :][: 9 * place.stride].reshape(9, -1) for place in (case.query, case.key))
    query[0, :64] = 0
    query[1, :64], key[2, :64] = 1e9, 1e9
    query[2, :64] = -1e9
    call(case.function, case.memory, np.zeros(16, np.float32), isa=wide)
    got = matrix(case.memory, case.context)
    assert np.isfinite(got).all()
    v = case.v[0]
    limit = np.abs(v).max() * 0.02
    np.testing.assert_allclose(got[0], v.mean(0), atol=limit)
    np.testing.assert_allclose(got[1], v[2], atol=limit)
    np.testing.assert_allclose(
        got[2], np.delete(v, 2, 0)[np.argmax(-1e9 * case.k[0].sum(1)[np.arange(40) != 2])], atol=limit
    )


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 50])
@pytest.mark.parametrize("queries", [1, 50])
def test_it_is_over_the_keys_there_are(rows: int, queries: int) -> None:
    """All else in memory is no number, so that whatever is read beside them is seen."""
    wide, width, most = isa(here("avx512vnni")), 64, 50
    how, arena = dot(wide, 7), Arena(16)
    query, key, value, target = (arena.place(n, width) for n in (queries, most, most, queries))
    bias = arena.place(1, most)
    heads = Heads(count=1, width=width, stride=width, query=query, key=key, value=value)
    tile = default_tile(wide, Product(rows=queries, columns=width, depth=most, dot=how))
    work = attention_registers.scratch(arena, heads, how, tile, wide)
    memory, there = np.full(arena.size, np.nan, np.float32), min(queries, rows)
    q, k, v = (RNG.standard_normal((n, width)).astype(np.float32) for n in (there, rows, rows))
    q *= np.float32(0.2)
    for place, values in ((query, q), (key, k), (value, v)):
        matrix(memory, place)[: len(values)] = values
    memory[bias.offset : bias.end] = MASKED
    memory[bias.offset : bias.offset + rows] = own = RNG.integers(0, 3, rows).astype(np.float32)
    alive = Alive(prefix=1, point=0, points=1)
    function = attention_registers.attention(wide, arena.size, 16, heads, target, work, how, tile, bias, alive)
    call(function, memory, np.zeros(16, np.float32), np.array([rows - 1], np.int32), isa=wide)
    shares = np.exp(q @ k.T + own * np.log(2))
    expected = shares / shares.sum(axis=1, keepdims=True) @ v
    np.testing.assert_allclose(matrix(memory, target)[:there], expected, atol=0.05)


def test_threads_change_no_bit() -> None:
    wide = isa(here("avx512vnni"))
    found = []
    for threads in (1, 2, 3):  # two and three have blocks that end with a part of a tile
        case = Case(replace(wide, threads=threads), 197, 197, 2, 64, 0.0, attention_registers, seed=1)
        call(case.function, case.memory, np.zeros(16, np.float32), isa=wide)
        case.check()
        found.append(matrix(case.memory, case.context).copy())
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("name", WIDE)
def test_it_is_int8_in_the_code_and_powers_are_scaled(name: str) -> None:
    case = Case(isa(name), 12, 20, 2, 64, 0.0, attention_registers)
    text = assembly(case.function, isa(name))
    assert count(text, "kernel", case.how.mnemonic) >= instructions(case.how)
    assert count(text, "kernel", "vscalefps") > 0


@pytest.mark.parametrize(
    ("name", "keys", "stride", "fits"),
    [
        ("avx512vnni", 197, 64, True),
        ("avx512", 464, 64, True),
        ("avx512vnni", 465, 64, False),
        ("avx512vnni", 197, 48, False),
        ("avxvnni", 50, 64, False),
        ("i8mm", 50, 64, False),
    ],
)
def test_where_it_is_taken(name: str, keys: int, stride: int, fits: bool) -> None:
    arena = Arena(16)
    query, key, value = (arena.place(keys, stride) for _ in range(3))
    heads = Heads(count=1, width=stride, stride=stride, query=query, key=key, value=value)
    assert attention_registers.fits(isa(name), heads, dot(isa(name), 7)) == fits


def test_less_memory_than_with_a_block_of_scores() -> None:
    wide, sizes = isa("avx512vnni"), []
    for form in (attention_registers, attention_int8):
        arena = Arena(16)
        query, key, value = (arena.place(197, 64) for _ in range(3))
        heads = Heads(count=1, width=64, stride=64, query=query, key=key, value=value)
        form.scratch(arena, heads, dot(wide, 7), default_tile(wide, Product(rows=197, columns=64, depth=197)), wide)
        sizes.append(arena.size)
    assert sizes[0] < sizes[1]
