"""Attention in integers on ARM: near softmax in float of the same int8 queries, keys and values, of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen.dots import dot  # noqa: E402
from edgevit.backends.tvm.codegen.integers import Integers, Matrix, place_integers  # noqa: E402
from edgevit.backends.tvm.codegen.layout import Arena, Blob, Place  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import Product, default_tile, isa, pad  # noqa: E402
from edgevit.backends.tvm.inspect.counts import count  # noqa: E402
from edgevit.backends.tvm.kernels.attention_int8 import instructions  # noqa: E402
from edgevit.backends.tvm.kernels.attention_neon import attention, scratch  # noqa: E402
from edgevit.backends.tvm.kernels.heads import MASKED, Heads  # noqa: E402
from edgevit.backends.tvm.kernels.neon_softmax import powers  # noqa: E402
from edgevit.schema.quant_plan import LinearPlan, QuantPlan  # noqa: E402
from tests.backends.tvm import crossed  # noqa: E402
from tests.backends.tvm.compiled import matrix  # noqa: E402
from tests.backends.tvm.kernels.test_int8 import assembly, integers  # noqa: E402

RNG = np.random.default_rng(0)
CPUS = [("dotprod", "cortex-a76"), ("i8mm", "max,sve=off,sme=off")]
SCALE, ZERO = 0.03, 120


class Case:
    """Heads side by side, some tokens far larger than others, the arena full of what may be no number."""

    def __init__(
        self, name: str, rows: int, keys: int, heads: int, width: int, *, size: float = 2.0, shift: float = 0.0
    ) -> None:
        self.isa, self.shape = isa(name), (rows, keys, heads, width)
        self.arena, self.blob, self.stride = Arena(4), Blob(), pad(width, 4)
        self.how = dot(self.isa, 8)
        inner = heads * self.stride
        self.inner, self.qkv = inner, self.arena.place(keys, 3 * inner)
        query, key, value = (self.qkv.columns(part * inner, inner) for part in range(3))
        self.heads = Heads(count=heads, width=width, stride=self.stride, query=query.first(rows), key=key, value=value)
        self.q, self.k, self.v = (
            RNG.standard_normal((n, heads, width)) * 2.0 ** RNG.integers(-3, 2, (n, 1, 1)) for n in (rows, keys, keys)
        )
        self.q *= size * width**-0.5
        # Scores far below 0 show whether the columns of padding take part in the softmax.
        self.q[..., 0], self.k[..., 0] = 1.0, shift

    def run(self, cpu: str, folder: Path, bias: np.ndarray | None = None, *, quantized: bool = False) -> np.ndarray:
        """What attention gives, `[rows, heads, width]`."""
        rows, keys, heads, width = self.shape
        tile = default_tile(self.isa, Product(rows=rows, columns=keys, depth=width, dot=self.how))
        target: Matrix = self.arena.place(rows, self.inner)
        entry = LinearPlan(name="proj", int8=True, scale=SCALE, zero_point=ZERO)
        if quantized:
            shape = (rows, self.inner, self.how.depth, self.how.stored)
            target = place_integers(
                self.arena, self.blob, *shape, QuantPlan(linears=(entry,)), entry, self.how.together
            )
        place = None if bias is None else self.arena.place(1, keys)
        work = scratch(self.arena, self.heads, self.how, tile, self.isa)
        memory = np.frombuffer(RNG.bytes(4 * self.arena.size), np.uint32).copy().view(np.float32)
        matrix(memory, self.qkv)[...] = 0
        for part, values in zip((self.heads.query, self.heads.key, self.heads.value), self._parts(), strict=True):
            matrix(memory, part).reshape(-1, heads, self.stride)[..., :width] = values
        if place is not None and bias is not None:
            memory[place.offset : place.offset + place.stride] = MASKED
            matrix(memory, place)[0] = bias
        blob = self.blob.array() if quantized else np.zeros(16, np.float32)
        arguments = (self.heads, target, work, self.how, tile, place)
        function = attention(self.isa, self.arena.size, blob.size, *arguments)
        assert count(assembly(function, self.isa), "kernel", self.how.mnemonic) >= instructions(self.how)
        crossed.call(function, memory, blob, self.isa, cpu, folder)
        got = matrix(memory, target) if isinstance(target, Place) else self._in_float(memory, target)
        found: np.ndarray = got.reshape(rows, heads, self.stride)
        assert quantized or not found[..., width:].any()
        return found[..., :width]

    def _in_float(self, memory: np.ndarray, target: Integers) -> np.ndarray:
        result: np.ndarray = (integers(memory, target)[:, : self.inner] + 128.0 - ZERO) * SCALE
        return result

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.q, self.k, self.v

    def expected(self, bias: np.ndarray | None = None, *, exact: bool = False) -> np.ndarray:
        """Softmax in float of int8 queries, keys and values, or of what they are."""
        q, k, v = (part.transpose(1, 0, 2) for part in self._parts())
        if not exact:
            q, k, v = rounded(q, -1), rounded(k, -1), rounded(v, 1)
        scores = q @ k.transpose(0, 2, 1) + (0 if bias is None else bias * np.log(2))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        result: np.ndarray = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2)
        return result


def rounded(x: np.ndarray, axis: int) -> np.ndarray:
    scale = np.maximum(np.abs(x).max(axis, keepdims=True), 1e-20) / 127
    result: np.ndarray = np.rint(x / scale) * scale
    return result


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean()) / np.sqrt((expected**2).mean()))


@pytest.mark.parametrize(("name", "cpu"), CPUS)
@pytest.mark.parametrize(
    ("shape", "shift"), [((197, 197, 1, 64), 0.0), ((30, 30, 3, 12), 0.0), ((1, 50, 2, 20), -200.0)]
)
def test_it_is_softmax_of_the_same_integers(
    name: str, cpu: str, shape: tuple[int, int, int, int], shift: float, tmp_path: Path
) -> None:
    case = Case(name, *shape, shift=shift)
    got = case.run(cpu, tmp_path)
    # A score of 200 leaves it a 64th of a power of 2 per step of 16 bits.
    assert error(got, case.expected()) < (0.02 if not shift else 0.06)
    if not shift:
        assert error(got, case.expected(exact=True)) < 0.05


@pytest.mark.parametrize(("name", "cpu"), CPUS)
@pytest.mark.parametrize("size", [0.0, 1e-15, 3000.0])
def test_scores_of_any_size(name: str, cpu: str, size: float, tmp_path: Path) -> None:
    """All alike, or one key with all of it."""
    case = Case(name, 9, 21, 2, 16, size=size)
    case.q[..., 0] *= bool(size > 1)
    assert error(case.run(cpu, tmp_path), case.expected()) < 0.02


@pytest.mark.parametrize(("name", "cpu"), CPUS)
@pytest.mark.parametrize("keys", [50, 13])
def test_biases_count_as_so_many_tokens(name: str, cpu: str, keys: int, tmp_path: Path) -> None:
    case, bias = Case(name, 7, keys, 2, 16), np.log2(RNG.integers(1, 9, keys))
    got = case.run(cpu, tmp_path, bias)
    assert error(got, case.expected(bias)) < 0.02 < error(got, case.expected())


@pytest.mark.parametrize(("name", "cpu"), CPUS)
def test_what_follows_gets_its_integers(name: str, cpu: str, tmp_path: Path) -> None:
    case = Case(name, 29, 29, 2, 32)
    low, high = -ZERO * SCALE, (255 - ZERO) * SCALE
    expected = np.clip(case.expected(), low, high)
    np.testing.assert_allclose(case.run(cpu, tmp_path, quantized=True), expected, atol=0.5 * SCALE + 0.05)


def test_powers_double_once() -> None:
    table = powers().astype(float)
    assert table[0] == 127 and (np.diff(table) >= 1).all() and table[-1] < 254
    assert np.abs(table / (127 * 2 ** ((np.arange(64) + 0.5) / 64)) - 1).max() < 0.006
