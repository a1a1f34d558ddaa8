"""Attention in int8: what numpy makes of the same integers, on every instruction set that can run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.dots import Maddubs, dot  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import (  # noqa: E402
    ISAS,
    Isa,
    Product,
    default_tile,
    isa,
    pad,
)
from edgevit.backends.tvm.inspect.counts import count  # noqa: E402
from edgevit.backends.tvm.kernels import attention_int8  # noqa: E402
from edgevit.backends.tvm.kernels.attention_int8 import POWER, instructions, thresholds  # noqa: E402
from edgevit.backends.tvm.kernels.heads import Heads  # noqa: E402
from edgevit.schema.int16_sums import Products  # noqa: E402
from tests.backends.tvm import crossed  # noqa: E402
from tests.backends.tvm.compiled import AVX2, call, matrix  # noqa: E402
from tests.backends.tvm.kernels.test_int8 import assembly  # noqa: E402

RNG = np.random.default_rng(0)
SHAPES = [(197, 197, 1, 64), (30, 30, 3, 12), (1, 50, 2, 16), (7, 9, 2, 20)]


class Case:
    """Heads side by side, some tokens' keys and values far larger than others', memory full of what is no number."""

    def __init__(
        self,
        isa: Isa,
        rows: int,
        keys: int,
        heads: int,
        width: int,
        shift: float = 0.0,
        form: Any = attention_int8,
        seed: int | None = None,
        products: Products = 2,
    ) -> None:
        rng = RNG if seed is None else np.random.default_rng(seed)
        arena, stride = Arena(isa.lanes), pad(width, 64 if form is not attention_int8 else isa.lanes)
        inner = heads * stride
        qkv, self.context = arena.place(keys, 3 * inner), arena.place(rows, inner)
        self.query, self.key, value = (qkv.columns(part * inner, inner) for part in range(3))
        split = Heads(count=heads, width=width, stride=stride, query=self.query.first(rows), key=self.key, value=value)
        self.how, self.lanes = dot(isa, 7).joining(products), isa.lanes
        tile = default_tile(isa, Product(rows=rows, columns=keys, depth=width, dot=self.how))
        work = form.scratch(arena, split, self.how, tile, isa)
        self.shape, self.limit = (rows, heads, stride), 63 if isinstance(self.how, Maddubs) else 127
        self.most, self.steps = (127, 255) if products == 2 else (63, 127)
        self.memory = np.full(arena.size, np.nan, np.float32)
        parts = [matrix(self.memory, place).reshape(-1, heads, stride) for place in (split.query, self.key, value)]
        matrix(self.memory, qkv)[...] = 0
        for part in parts:
            part[..., :width] = rng.standard_normal((*part.shape[:2], width))
            part *= np.float32(2) ** rng.integers(-3, 2, (part.shape[0], 1, 1))
        parts[0][...] *= 2 * width**-0.5
        # Scores far below 0 show whether the columns of padding take part in the softmax.
        parts[0][..., 0], parts[1][..., 0] = 1.0, shift
        self.q, self.k, self.v = (part[..., :width].astype(np.float64).transpose(1, 0, 2) for part in parts)
        self.function = form.attention(isa, arena.size, 16, split, self.context, work, self.how, tile)

    @property
    def exact(self) -> np.ndarray:
        scores = self.q @ self.k.transpose(0, 2, 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        result: np.ndarray = shares / shares.sum(-1, keepdims=True) @ self.v
        return result

    @property
    def expected(self) -> np.ndarray:
        """The same with integers, in numpy."""
        (q, sq), (k, sk) = rounded(self.q, -1, self.most), rounded(self.k, -1, self.limit)
        v, sv = rounded(self.v, 1, self.limit)
        scores = q @ k.transpose(0, 2, 1) * (sq * sk.transpose(0, 2, 1))
        up = np.resize(thresholds(self.lanes), scores.shape[-1])
        shares = np.floor(self.steps * power((scores - scores.max(-1, keepdims=True)) * np.log2(np.e)) + up)
        result: np.ndarray = shares @ v * sv / shares.sum(-1, keepdims=True)
        return result

    def check(self) -> None:
        got = matrix(self.memory, self.context).reshape(self.shape)
        width, largest = self.v.shape[-1], np.abs(self.v).max()
        # An integer may tip over to the next one.
        np.testing.assert_allclose(got[..., :width].transpose(1, 0, 2), self.expected, atol=4e-3 * largest)
        assert np.median(np.abs(got[..., :width].transpose(1, 0, 2) - self.expected)) < 1e-4 * largest
        assert not got[..., width:].any()


def power(x: np.ndarray) -> np.ndarray:
    whole = np.floor(x)
    result: np.ndarray = np.polyval(POWER, x - whole) * 2.0**whole
    return result


def rounded(x: np.ndarray, axis: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(x).max(axis, keepdims=True) / limit
    return np.rint(x / scale), scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, -200.0])
def test_it_is_what_numpy_makes_of_the_same_integers(shape: tuple[int, int, int, int], shift: float) -> None:
    case = Case(AVX2, *shape, shift)
    call(case.function, case.memory, np.zeros(16, np.float32))
    case.check()
    if not shift:
        assert np.sqrt(((case.expected - case.exact) ** 2).mean()) < 0.1 * np.sqrt((case.exact**2).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["sse42", "avx2"])
def test_sums_of_four_products_take_seven_bits_of_both_sides(name: str, shape: tuple[int, int, int, int]) -> None:
    case = Case(isa(name), *shape, products=4)
    assert case.how == Maddubs(lanes=isa(name).lanes, joined=2)
    call(case.function, case.memory, np.zeros(16, np.float32), isa=isa(name))
    case.check()


def test_powers_are_a_fraction_of_a_step_off() -> None:
    x = np.linspace(-20, 0, 10001)
    assert np.abs(power(x) / 2**x - 1).max() < 1.2e-4
    assert power(np.zeros(1)) == 1 and power(np.array([-1e-9])) <= 1 + 1e-7


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_small_shares_survive_on_average(lanes: int) -> None:
    up = thresholds(lanes)
    assert sorted(up) == [(i + 0.5) / lanes for i in range(lanes)] and abs(up[0] - up[1]) == 0.5
    # One token with all the attention and 192 with 0.3 steps each, a sixth of the whole: a half would lose them.
    kept = np.floor(0.3 + np.resize(up, 192)).sum()
    assert kept == pytest.approx(0.3 * 192, abs=0.5 * 192 / lanes) and np.floor(0.3 + 0.5) == 0


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_same_on_aarch64(shape: tuple[int, int, int, int], tmp_path: Path) -> None:
    case = Case(isa("neon"), *shape)
    crossed.call(case.function, case.memory, np.zeros(16, np.float32), isa("neon"), "cortex-a53", tmp_path)
    case.check()


# Those with sdot or smmla have a kernel of their own: tests/backends/tvm/kernels/test_attention_neon.py.
@pytest.mark.parametrize("name", sorted(name for name in ISAS if dot(ISAS[name], 7).together == 1))
def test_it_is_int8_in_the_code(name: str) -> None:
    case = Case(isa(name), 12, 20, 2, 32)
    assert count(assembly(case.function, isa(name)), "kernel", case.how.mnemonic) >= instructions(case.how)
