"""Products in int8: exact sums on every instruction set that can run here, and the right instructions on the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from edgevit.onnx_form import linear
from edgevit.schema.int16_sums import Products  # noqa: E402
from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.dots import (  # noqa: E402
    Dot,
    Maddubs,
    Maddwd,
    Sdot,
    Smlal,
    Smmla,
    Vpdpbusd,
    dot,
)
from edgevit.backends.tvm.codegen.integers import (  # noqa: E402
    BYTES,
    LOW,
    Integers,
    pixels,
    place_integers,
    quantize,
)
from edgevit.backends.tvm.codegen.layout import Arena, Blob  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import (  # noqa: E402
    ISAS,
    Isa,
    Product,
    Tile,
    default_tile,
    isa,
    tuned,
)
from edgevit.backends.tvm.compile.passes import compile_kernels  # noqa: E402
from edgevit.backends.tvm.inspect.counts import count  # noqa: E402
from edgevit.backends.tvm.kernels import int8  # noqa: E402
from edgevit.backends.tvm.kernels.common import Epilogue  # noqa: E402
from tests.backends.tvm import crossed  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call, matrix  # noqa: E402

RNG = np.random.default_rng(0)
SHAPES = [(13, 50, 40), (1, 33, 10), (3, 16, 24), (16, 96, 72), (7, 8, 8)]
Bits = Literal[7, 8]


class Case:
    """One product whose sums come out as they are: scales are 1, so that float32 holds them exactly."""

    def __init__(
        self,
        isa: Isa,
        bits: Bits,
        rows: int,
        depth: int,
        columns: int,
        tile: Tile | None = None,
        *,
        products: Products = 2,
    ) -> None:
        self.isa, self.how, limit = isa, dot(isa, bits), 2 ** (bits - 1) - 1
        self.entry = LinearPlan(name="fc1", int8=True, scale=1.0, zero_point=int(RNG.integers(0, 256)))
        self.plan = QuantPlan(linears=(self.entry,), weight_bits=bits)
        self.arena, blob = Arena(isa.lanes), Blob()
        self.weight = RNG.integers(-limit, limit + 1, (depth, columns))
        self.weight[RNG.integers(0, depth, columns), np.arange(columns)] = limit
        # The largest sums of pairs that there are, for what saturates.
        self.weight[:, 0] = limit
        if products == 4:
            self.weight = fitting(depth, columns)
            self.how = self.how.for_weight(self.weight, products)
        self.source = place_integers(
            self.arena,
            blob,
            rows,
            depth,
            self.how.depth,
            self.how.stored,
            self.plan,
            self.entry,
            self.how.together,
        )
        self.target = self.arena.place(rows, columns)
        self.beyond = self.arena.place(1, 16)
        chosen = default_tile(isa, Product(rows=rows, columns=columns, depth=depth, dot=self.how))
        self.tile = tile or chosen
        weight = self.weight.astype(np.float32)
        packed = int8.add_weights(blob, weight, None, self.plan, self.entry, self.how, self.tile)
        self.values = blob.array()
        self.function = int8.product(
            isa, self.arena.size, blob.size, self.source, self.target, packed, self.how, self.tile, Epilogue()
        )
        self.memory = np.frombuffer(RNG.bytes(4 * self.arena.size), np.uint32).copy().view(np.float32)
        self.x = RNG.integers(0, 256, (rows, depth))
        self.x[0], self.x[0, ::2] = 255, 254
        stored = (self.x + LOW[self.how.stored]).astype(self.how.stored)
        fill(self.memory, self.source, stored)

    @property
    def expected(self) -> np.ndarray:
        sums: np.ndarray = (self.x - self.entry.zero_point) @ self.weight
        return sums

    def check(self, run: Callable[[], None]) -> None:
        """Every sum, bit for bit, and nothing but the target is written."""
        before = self.memory.copy()
        run()
        np.testing.assert_array_equal(matrix(self.memory, self.target).astype(np.int64), self.expected)
        written = slice(self.target.offset, self.target.end)
        before[written] = self.memory[written]
        np.testing.assert_array_equal(before.view(np.uint32), self.memory.view(np.uint32))


def fitting(depth: int, columns: int) -> np.ndarray:
    """Weights whose sums of four products fit 16 bits, among them the largest that do, of both signs."""
    weight = RNG.integers(-32, 33, (depth, columns))
    for column, sign in ((0, 1), (1, -1)):
        weight[:, column] = 0
        weight[0::8, column], weight[5::8, column], weight[4::8, column] = 63 * sign, 63 * sign, 2 * sign
    weight[:8, 2:], weight[0, 2:] = 0, 63
    return weight


def fill(memory: np.ndarray, place: Integers, values: np.ndarray) -> None:
    """Store `[rows, columns]` as a place has them; what is beside and below them is left as it is."""
    full = np.pad(values, ((0, 0), (0, -values.shape[1] % 4))).view(np.uint32)
    words = memory.view(np.uint32)
    for (row, index), word in np.ndenumerate(full):
        words[place_of(place, row, index)] = word


def place_of(place: Integers, row: int, index: int) -> int:
    """Where word `index` of a row lies: 16 bytes are `together` rows by whole words."""
    together, stride = place.together, place.place.stride
    words = 4 // together
    if together == 1:
        return place.place.offset + row * stride + index
    block = row // together * together * stride + index // words * 4
    return place.place.offset + block + row % together * words + index % words


def integers(memory: np.ndarray, place: Integers) -> np.ndarray:
    """A place of integers as a view of all its columns, writable where rows do not share blocks."""
    if place.together > 1:
        rows, stride = place.rows, place.place.stride
        found = [[memory.view(np.uint32)[place_of(place, r, i)] for i in range(stride)] for r in range(rows)]
        return np.array(found, np.uint32).view(place.stored)
    words = matrix(memory.view(np.uint32), place.place)
    view: np.ndarray = words.view(place.stored)
    assert view.shape[1] == words.shape[1] * 4 // BYTES[place.stored]
    return view


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("name", ["sse42", "avx2"])
def test_sums_are_exact(name: str, bits: Bits, shape: tuple[int, int, int]) -> None:
    case = Case(isa(name), bits, *shape)
    case.check(lambda: call(case.function, case.memory, case.values, isa=case.isa))


@pytest.mark.parametrize("shape", [(13, 48, 40), (1, 32, 10), (16, 96, 72), (7, 8, 8)])
@pytest.mark.parametrize("name", ["sse42", "avx2"])
def test_sums_of_four_products_are_exact(name: str, shape: tuple[int, int, int]) -> None:
    case = Case(isa(name), 7, *shape, products=4)
    assert case.how == Maddubs(lanes=isa(name).lanes, joined=2)
    case.check(lambda: call(case.function, case.memory, case.values, isa=case.isa))


@pytest.mark.parametrize("name", ["sse42", "avx2", "avx512"])
def test_one_widening_serves_two_multiplications(name: str) -> None:
    for products in (2, 4):
        case = Case(isa(name), 7, 16, 96, 72, products=products)
        code = assembly(case.function, case.isa)
        pairs, wide = (count(code, "kernel", mnemonic) for mnemonic in (r"v?pmaddubsw", r"v?pmaddwd"))
        assert 2 * pairs == products * wide > 0


def test_weights_that_do_not_fit_are_multiplied_as_before() -> None:
    """One weight more than there is room for, or a depth that is no whole number of steps."""
    weight = fitting(48, 40)
    assert Maddubs(lanes=8).for_weight(weight, 4).depth == 8
    assert Maddubs(lanes=8).for_weight(weight, 2).depth == 4
    assert Maddubs(lanes=8).for_weight(weight[:44], 4).depth == 4
    assert Vpdpbusd(lanes=8).for_weight(weight, 4) == Vpdpbusd(lanes=8)
    weight[1, 0] = 1
    assert Maddubs(lanes=8).for_weight(weight, 4).depth == 4


def test_four_products_of_any_weights_would_overflow() -> None:
    """What rounding for them is worth: joined nevertheless, the largest sums come out wrong."""
    case = Case(AVX2, 7, 3, 16, 24)
    case.how = case.how.joining(4)
    arena, blob, tile = Arena(8), Blob(), Tile(rows=3, vectors=3)
    source = place_integers(arena, blob, 3, 16, 4, "uint8", case.plan, case.entry)
    target = arena.place(3, 24)
    packed = int8.add_weights(blob, case.weight.astype(np.float32), None, case.plan, case.entry, case.how, tile)
    memory = np.zeros(arena.size, np.float32)
    integers(memory, source)[:, :16] = case.x
    call(
        int8.product(AVX2, arena.size, blob.size, source, target, packed, case.how, tile, Epilogue()),
        memory,
        blob.array(),
    )
    assert matrix(memory, target)[0, 0] != case.expected[0, 0]


@pytest.mark.parametrize("tile", [Tile(rows=1, vectors=1), Tile(rows=5, vectors=2), Tile(rows=4, vectors=4)])
def test_any_tile_gives_the_same_sums(tile: Tile) -> None:
    case = Case(AVX2, 7, 13, 50, 40, tile)
    case.check(lambda: call(case.function, case.memory, case.values))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "cpu"), [("neon", "cortex-a53"), ("dotprod", "cortex-a76"), ("i8mm", "max,sve=off,sme=off")]
)
def test_sums_are_exact_on_aarch64(name: str, cpu: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    case = Case(isa(name), 8, *shape)
    case.check(lambda: crossed.call(case.function, case.memory, case.values, case.isa, cpu, tmp_path))


def test_eight_bits_would_saturate_in_vpmaddubsw() -> None:
    """What the case of exact sums is worth: with the instruction of 7 bits it fails for 8."""
    case = Case(AVX2, 8, 3, 16, 24)
    case.how = Maddubs(lanes=8)
    arena, blob = Arena(8), Blob()
    source = place_integers(arena, blob, 3, 16, 4, "uint8", case.plan, case.entry)
    target, tile = arena.place(3, 24), Tile(rows=3, vectors=3)
    packed = int8.add_weights(blob, case.weight.astype(np.float32), None, case.plan, case.entry, case.how, tile)
    memory = np.zeros(arena.size, np.float32)
    integers(memory, source)[:, :16] = case.x
    function = int8.product(AVX2, arena.size, blob.size, source, target, packed, case.how, tile, Epilogue())
    call(function, memory, blob.array())
    assert (matrix(memory, target)[0, 0] != case.expected[0, 0]) and case.expected[0, 0] > 0


@pytest.mark.parametrize(
    ("name", "cpu", "bits", "kind"),
    [
        ("sse42", None, 7, Maddubs),
        ("sse42", None, 8, Maddwd),
        ("avx2", None, 7, Maddubs),
        ("avx2", None, 8, Maddwd),
        ("avx512", None, 7, Maddubs),
        ("avx512", None, 8, Maddwd),
        ("avx512vnni", None, 8, Vpdpbusd),
        ("avx512vnni", None, 7, Vpdpbusd),
        ("avxvnni", None, 8, Vpdpbusd),
        ("neon", None, 8, Smlal),
        ("neon", "cortex-a72", 8, Smlal),
        ("neon", "cortex-a76", 8, Sdot),
        ("dotprod", None, 8, Sdot),
        ("i8mm", None, 8, Smmla),
    ],
)
def test_every_instruction_set_uses_its_instruction(name: str, cpu: str | None, bits: Bits, kind: type[Dot]) -> None:
    made = tuned(isa(name), cpu) if cpu else isa(name)
    case = Case(made, bits, 29, 64, 96)
    assert case.how == kind(lanes=made.lanes)
    found = count(assembly(case.function, made), "kernel", case.how.mnemonic)
    assert found >= int8.instructions(29, 96, case.how, case.tile) > case.how.count(Tile(rows=1, vectors=1))
    registers = {"sse42": "xmm", "avx2": "ymm", "avxvnni": "ymm", "avx512": "zmm", "avx512vnni": "zmm"}
    wide = rf"{registers[name]}\d+" if name in registers else ""
    assert count(assembly(case.function, made), "kernel", case.how.mnemonic + rf".*{wide}") == found


def assembly(function: Any, isa: Isa) -> str:
    text: str = compile_kernels({"kernel": function}, isa.target).mod.inspect_source("asm")
    return text


@pytest.mark.parametrize("name", sorted(ISAS))
def test_default_tiles_fit_the_registers(name: str) -> None:
    made = isa(name)
    for bits in (7, 8):
        how = dot(made, bits)
        for rows in (1, 2, 50, 197):
            tile = default_tile(made, Product(rows=rows, columns=192, depth=192, dot=how))
            assert tile.rows <= rows
            assert how.registers(tile) <= made.registers or rows == 1


class Rounding:
    """Values at every place of a quantizer that rounding could get wrong, and what they must become."""

    def __init__(self, isa: Isa, bits: Bits) -> None:
        how = dot(isa, bits)
        steps = np.concatenate([np.arange(-600, 600) / 2, [-1e30, -1e10, 1e10, 1e30, 1e-30, -0.0]])
        x = np.pad(steps * 0.25, (0, -len(steps) % 48)).astype(np.float32).reshape(-1, 48)
        entry = LinearPlan(name="fc2", int8=True, scale=0.25, zero_point=100)
        arena, blob = Arena(isa.lanes), Blob()
        self.source = arena.place(*x.shape)
        plan = QuantPlan(linears=(entry,), weight_bits=bits)
        self.target = place_integers(arena, blob, *x.shape, how.depth, how.stored, plan, entry, how.together)
        self.memory, self.values = np.zeros(arena.size, np.float32), blob.array()
        matrix(self.memory, self.source)[...] = x
        self.function = quantize(isa, arena.size, blob.size, self.source, self.target)
        self.expected = np.clip(np.rint(x / np.float32(0.25)) + 100, 0, 255) + LOW[how.stored]

    def check(self) -> None:
        np.testing.assert_array_equal(integers(self.memory, self.target)[:, :48], self.expected)


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("name", ["sse42", "avx2"])
def test_rounding_is_to_even_and_ends_at_both_ends(name: str, bits: Bits) -> None:
    case = Rounding(isa(name), bits)
    call(case.function, case.memory, case.values, isa=isa(name))
    case.check()


@pytest.mark.parametrize(("name", "cpu"), [("neon", "cortex-a53"), ("dotprod", "cortex-a76")])
def test_rounding_is_the_same_on_aarch64(name: str, cpu: str, tmp_path: Path) -> None:
    case = Rounding(isa(name), 8)
    crossed.call(case.function, case.memory, case.values, isa(name), cpu, tmp_path)
    case.check()


@pytest.mark.parametrize("bits", [7, 8])
def test_an_epilogue_is_scale_bias_outliers_activation_and_what_is_there(bits: Bits) -> None:
    rows, depth, columns, out = 7, 20, 24, (3, 17)
    entry = LinearPlan(name="fc2", int8=True, scale=0.03, zero_point=99, outliers=out)
    plan, how = QuantPlan(linears=(entry,), weight_bits=bits), dot(AVX2, bits)
    arena, blob, tile = Arena(8), Blob(), Tile(rows=4, vectors=2)
    source = place_integers(arena, blob, rows, depth, how.depth, how.stored, plan, entry)
    raw, target = arena.place(rows, depth), arena.place(rows, columns)
    weight, bias, table = (
        RNG.standard_normal(s).astype(np.float32) for s in ((depth, columns), columns, (rows, columns))
    )
    packed = int8.add_weights(blob, weight, bias, plan, entry, how, tile)
    epilogue = Epilogue(activation="relu", onto=True, table=blob.add(table))
    memory = RNG.standard_normal(arena.size).astype(np.float32)
    x, before = matrix(memory, raw), matrix(memory, target).copy()
    x[:, out] *= 100
    call(quantize(AVX2, arena.size, blob.size, raw, source), memory, blob.array())
    function = int8.product(AVX2, arena.size, blob.size, source, target, packed, how, tile, epilogue)
    call(function, memory, blob.array())
    rounded = np.clip(np.rint(x.astype(np.float64) / 0.03) + 99, 0, 255) - 99
    np.testing.assert_array_equal(integers(memory, source)[:, :depth] - 99.0, rounded)
    regular = weight.copy()
    regular[list(out)] = 0
    values, scale = linear.quantize_weight(regular, bits)
    y = rounded @ values.astype(np.float64) * (scale * 0.03) + bias + x[:, out] @ weight[list(out)]
    # The bias is rounded to whole steps of the sums.
    np.testing.assert_allclose(
        matrix(memory, target), np.maximum(y, 0) + before + table, atol=0.51 * float(scale.max()) * 0.03 + 2e-4
    )


@pytest.mark.parametrize(("step", "coarse"), [(1 / 32, True), (1 / 1024, False)])
def test_an_activation_function_is_coarse_only_where_steps_are_wide(step: float, coarse: bool) -> None:
    """Inputs 0.05 apart around 0, and as many steps as 8 bits have: almost all must be the nearest."""
    entry = LinearPlan(name="fc1", int8=True, scale=0.05, zero_point=128)
    after = LinearPlan(name="fc2", int8=True, scale=step, zero_point=200)
    plan, how = QuantPlan(linears=(entry, after), weight_bits=8), dot(AVX2, 8)
    arena, blob, tile = Arena(8), Blob(), Tile(rows=4, vectors=1)
    source = place_integers(arena, blob, 256, 4, how.depth, how.stored, plan, entry)
    target = place_integers(arena, blob, 256, 8, how.depth, how.stored, plan, after)
    packed = int8.add_weights(blob, np.eye(4, 8, dtype=np.float32), None, plan, entry, how, tile)
    memory = np.zeros(arena.size, np.float32)
    integers(memory, source)[:, 0] = np.arange(256)
    function = int8.product(AVX2, arena.size, blob.size, source, target, packed, how, tile, Epilogue(activation="gelu"))
    call(function, memory, blob.array())
    x = (np.arange(256) - 128) * 0.05
    gelu = x * np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    nearest = np.clip(np.rint(gelu / step) + 200, 0, 255)
    assert target.coarse is coarse and np.unique(nearest).size > 20
    assert (integers(memory, target)[:, 0] == nearest).mean() > 0.98


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_quantized_as_in_the_other_backends(bits: int) -> None:
    weight = RNG.standard_normal((20, 12)).astype(np.float32)
    weight[:, 3] = 0
    for ours, theirs in zip(int8.quantize_weight(weight, bits), linear.quantize_weight(weight, bits), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize("stored", ["uint8", "int8", "int16"])
def test_pixels_are_taken_as_they_are(stored: Any, side: int) -> None:
    image = RNG.integers(0, 256, (1, 2 * side, 3 * side, 3), dtype=np.uint8)
    arena, entry = Arena(8), LinearPlan(name="stem", int8=True)
    place = place_integers(arena, Blob(), 6, side * side * 3, 4, stored, QuantPlan(linears=(entry,)), entry)
    memory = np.zeros(arena.size, np.float32)
    call(pixels(AVX2, arena.size, 2 * side, 3 * side, side, place), image, memory)
    split = image.reshape(2, side, 3, side, 3).transpose(0, 2, 1, 3, 4).reshape(6, -1)
    np.testing.assert_array_equal(integers(memory, place)[:, : side * side * 3].astype(int) - LOW[stored], split)
