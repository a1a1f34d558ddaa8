"""A point of merging as a kernel: what torch makes of the same stream, among equals too, in place, on every thread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevit.program.spec import MergeSpec
from edgevit.torch_form import tokens
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_spec

import_or_skip()

from edgevit.backends.tvm.codegen.code import Code, buffer, load_vector  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena, pad_columns  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Isa, Product, default_tile, isa  # noqa: E402
from edgevit.backends.tvm.kernels.heads import MASKED  # noqa: E402
from edgevit.backends.tvm.kernels.merge import Pairs, Sizes, merge, scratch  # noqa: E402
from edgevit.backends.tvm.kernels.pack_rows import transposed  # noqa: E402
from tests.backends.tvm import crossed  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call, matrix  # noqa: E402

EPS = 1e-6
# Patches, width, count, prefix: odd ones, widths of no whole vector, all that can be merged, more than two panels.
SHAPES = [(16, 32, 5, 1), (17, 36, 8, 0), (49, 20, 1, 5), (2, 8, 1, 1), (98, 24, 49, 2)]


class Case:
    """A stream in an arena full of what is no number, with what torch makes of it."""

    def __init__(self, isa: Isa, shape: tuple[int, int, int, int], *, begins: bool, equal: bool) -> None:
        patches, dim, count, prefix = shape
        self.isa, self.count, self.prefix, rng = isa, count, prefix, np.random.default_rng(0)
        arena, rows = Arena(isa.lanes), prefix + patches
        self.stream = arena.place(rows, dim)
        self.sizes = Sizes(patches=arena.place(1, 3 * patches), bias=arena.place(2, rows + 7))
        self.work = work = scratch(arena, patches, dim, isa.lanes)
        tile = default_tile(isa, Product(rows=work.first.rows, columns=work.second.rows, depth=dim))
        self.memory = np.full(arena.size, np.nan, np.float32)
        x = rng.standard_normal((rows, dim)).astype(np.float32)
        if equal:
            x[prefix:] = x[prefix + rng.integers(0, 3, patches)]
        sizes = np.ones(rows, np.float32)
        if not begins:
            sizes[prefix:] = rng.integers(1, 4, patches)
        stride = self.sizes.bias.stride
        self.memory[self.stream.offset : self.stream.end] = pad_columns(x, self.stream.stride).ravel()
        matrix(self.memory, self.sizes.patches)[0, :patches] = sizes[prefix:]
        table = np.log(np.arange(1, stride + 1))
        self.values = np.stack([table, table / np.log(2)]).astype(np.float32).ravel()
        spec = replace(tiny_spec(dim=dim, heads=1, prefix=prefix), norm_eps=EPS)
        given = None if begins else torch.from_numpy(sizes)[None, :, None]
        point = MergeSpec(after="b00_mhsa", count=count)
        self.expected, self.expected_sizes = (
            t[0].numpy() for t in tokens.merge(torch.from_numpy(x)[None], given, point, spec)
        )
        self.function = merge(
            isa,
            arena.size,
            self.values.size,
            self.stream,
            prefix,
            Pairs(count=count),
            self.sizes,
            begins,
            work,
            tile,
            0,
            EPS,
        )

    def check(self) -> None:
        left = self.stream.rows - self.count
        np.testing.assert_allclose(matrix(self.memory, self.stream)[:left], self.expected, atol=2e-6)
        got = matrix(self.memory, self.sizes.patches)[0]
        np.testing.assert_array_equal(got[: left - self.prefix], self.expected_sizes[self.prefix :, 0])
        bias = matrix(self.memory, replace(self.sizes.bias, width=self.sizes.bias.stride))
        for row, factor in zip(bias, (1, np.log(2)), strict=True):
            np.testing.assert_allclose(row[:left] * factor, np.log(self.expected_sizes[:, 0]), atol=1e-6)
            assert (row[left:] == np.float32(MASKED)).all()


@pytest.mark.parametrize("equal", [False, True], ids=("drawn", "equal"))
@pytest.mark.parametrize("begins", [True, False], ids=("first", "later"))
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_torch_makes_of_the_stream(shape: tuple[int, int, int, int], begins: bool, equal: bool) -> None:
    case = Case(AVX2, shape, begins=begins, equal=equal)
    call(case.function, case.memory, case.values)
    case.check()


@pytest.mark.parametrize("shape", [(16, 32, 5, 1), (98, 24, 49, 2)])
def test_what_is_no_number_leads_to_no_place_outside(shape: tuple[int, int, int, int]) -> None:
    """Weights may be damaged where nobody looked at their hash: a stream of nan is merged within its rows."""
    case = Case(AVX2, shape, begins=True, equal=False)
    matrix(case.memory, case.stream)[...] = np.nan
    call(case.function, case.memory, case.values)
    places = case.work.into
    into = case.memory[places.offset : places.offset + case.work.first.rows]
    assert (into == case.work.second.rows - 1).all()
    left = matrix(case.memory, case.sizes.patches)[0, : shape[0] - case.count]
    assert left.sum() == shape[0] and left.min() >= 1


def test_threads_change_no_bit() -> None:
    """Large enough that the work is shared out."""
    shape = (196, 96, 60, 1)
    cases = [Case(replace(AVX2, threads=n), shape, begins=False, equal=False) for n in (1, 3)]
    assert str(cases[0].function) != str(cases[1].function)
    for case in cases:
        call(case.function, case.memory, case.values)
        case.check()
    left = shape[0] - shape[2]
    alone, together = (matrix(case.memory, case.stream)[:left] for case in cases)
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_the_same_on_aarch64(shape: tuple[int, int, int, int], tmp_path: Path) -> None:
    case = Case(isa("neon"), shape, begins=False, equal=True)
    crossed.call(case.function, case.memory, case.values, isa("neon"), "cortex-a53", tmp_path)
    case.check()


def test_a_block_is_transposed() -> None:
    lanes, code, memory = AVX2.lanes, Code(), buffer("arena", AVX2.lanes**2)
    for row, column in enumerate(transposed(code, [load_vector(memory, r * lanes, lanes) for r in range(lanes)])):
        code.store_vector(memory, row * lanes, column, lanes)
    values = np.arange(lanes**2, dtype=np.float32)
    expected = values.reshape(lanes, lanes).T.ravel()
    call(code.function([memory]), values)
    np.testing.assert_array_equal(values, expected)
