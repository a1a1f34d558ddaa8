"""A builder of TIR statements for kernels: loops, registers, vectors, and the functions that ViTs need.

Kernels are written as the loops they are to run as, so that every vector and every accumulator is explicit. All
indices are into flat buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.buffer import buffer_data

from edgevit.program.spec import Activation

SQRT_HALF = 0.7071067811865476
# exp(x) with |x| < ln2 / 2 as 1 + x + x^2 p(x); Cephes' expf.
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LN2_HIGH, LN2_LOW, LOG2_E = 0.693359375, -2.12194440e-4, 1.44269504088896341
# erf(x) with |x| < 4 as x p(x^2) / q(x^2): Eigen's float erf.
ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
# P(0 < X < x), X normal, as x p(x^2), |x| <= 3.65, 1/2 at the end of it: x times its error is below 4.9e-4.
NORMAL_END = 3.65
NORMAL = (
    -5.007023172315101e-07,
    2.7291480021087386e-05,
    -6.230550489071217e-04,
    7.882909872829465e-03,
    -6.267781332865947e-02,
    3.965499909967117e-01,
)


class Code:
    """Statements of one function, in order; `loop` opens a block."""

    def __init__(self) -> None:
        self._blocks: list[list[Any]] = [[]]
        self._names = 0
        self._team = False

    def function(self, buffers: Sequence[Any], *, result: str | None = None) -> Any:
        """Return the finished function over these parameter buffers; they never alias."""
        kind = tirx.PrimFunc(buffers, _sequence(self._blocks[0]), ret_type=_prim(result) if result else None)
        return kind.with_attr("tirx.noalias", True)

    def add(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    @contextmanager
    def loop(self, extent: Any, *, parallel: bool = False) -> Iterator[Any]:
        """Run what follows for 0 <= i < extent; one turn is no loop, none emits nothing, if that is known here."""
        known = isinstance(extent, int)
        if known and extent == 1:
            yield 0
            return
        variable = tirx.Var(self._name("i"), "int32")
        self._blocks.append([])
        yield variable
        body = self._blocks.pop()
        if body and not (known and extent == 0):
            kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
            self.add(tirx.For(variable, integer(0), integer(extent), kind, _sequence(body)))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run what follows in one thread, in a region too."""
        if not self._team:
            yield
            return
        # The compiler makes no loop of one turn, in which every thread would do this.
        with self.loop(2, parallel=True) as index, self.when(index == integer(0)):
            yield

    @contextmanager
    def region(self) -> Iterator[None]:
        """Run what follows in every thread at once: parallel loops are shared out, all else each of them does."""
        self._blocks.append([])
        self._team = True
        yield
        self._team = False
        self.add(self._pragma("parallel_launch_point", _sequence(self._blocks.pop())))

    @contextmanager
    def phase(self) -> Iterator[None]:
        """In a region, around parallel loops: nobody goes on before all threads have done what follows."""
        self._blocks.append([])
        yield
        self.add(self._pragma("parallel_barrier_when_finish", _sequence(self._blocks.pop())))

    def _pragma(self, name: str, body: Any) -> Any:
        return tirx.AttrStmt(integer(0), f"pragma_{name}", integer(1), body)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Run what follows where a condition holds."""
        self._blocks.append([])
        yield
        self.add(tirx.IfThenElse(condition, _sequence(self._blocks.pop()), None))

    def let(self, value: Any) -> Any:
        """Compute `value` here, once."""
        variable = tirx.Var(self._name("v"), value.ty)
        self.add(tirx.Bind(variable, value))
        return variable

    def register(self, value: Any) -> Register:
        """Return a variable that starts with `value`."""
        # Scope "global" and under 1 KB is the stack, from where the compiler takes it into a register; "local" would be
        # a call of the runtime's allocator.
        cell = tirx.decl_buffer((1,), str(value.ty.dtype), self._name("r"), scope="global")
        self.add(tirx.AllocBuffer(cell))
        made = Register(self, cell)
        made.set(value)
        return made

    def store(self, buffer: Any, index: Any, value: Any) -> None:
        """Store one element."""
        self.add(tirx.BufferStore(buffer, value, [integer(index)]))

    def store_vector(self, buffer: Any, index: Any, value: Any, lanes: int) -> None:
        """Store `lanes` consecutive elements from `index` on."""
        self.add(tirx.BufferStore(buffer, value, [tirx.Ramp(integer(index), integer(1), lanes)]))

    def flat(self, source: Any, kind: str) -> Any:
        """Return the memory of a buffer as a flat one of elements `kind`."""
        size = math.prod(int(n) for n in source.shape) * _bytes(source.dtype) // _bytes(kind)
        view = tirx.decl_buffer((size,), kind, self._name("f"))
        self.add(tirx.DeclBuffer(view, data=buffer_data(source)))
        return view

    def give(self, value: Any) -> None:
        """Return `value` from the function."""
        self.add(tirx.Return(value))

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}"


class Register:
    """A variable that loops can add to."""

    def __init__(self, code: Code, cell: Any) -> None:
        self._code, self._cell = code, cell

    @property
    def value(self) -> Any:
        return load(self._cell, 0)

    def set(self, value: Any) -> None:
        self._code.store(self._cell, 0, value)


def buffer(name: str, size: int, kind: str = "float32") -> Any:
    """Return a flat parameter buffer."""
    return tirx.decl_buffer((size,), kind, name)


def tensor(name: str, shape: tuple[int, ...], kind: str = "float32") -> Any:
    """Return a parameter buffer of any shape; see `Code.flat`."""
    return tirx.decl_buffer(shape, kind, name)


def integer(value: Any) -> Any:
    return tirx.const(value, "int32") if isinstance(value, int) else value


def larger(a: Any, b: Any) -> Any:
    """Return the larger of two integers, each known here or only when it runs."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(integer(a), integer(b))


def smaller(a: Any, b: Any) -> Any:
    """Return the smaller one."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(integer(a), integer(b))


def whole(a: Any, size: int) -> Any:
    """Return how often a size goes into an integer, known here or only when it runs; neither is negative."""
    return a // size if isinstance(a, int) else tirx.floordiv(a, integer(size))


UNROLLED = 4


def unrolled(code: Code, count: Any, emit: Callable[[Any], None]) -> None:
    """Call `emit(i)` for 0 <= i < count, `UNROLLED` times in the body of a loop, so that counting hardly counts."""
    full = whole(count, UNROLLED)
    with code.loop(full) as index:
        for i in range(UNROLLED):
            emit(index * UNROLLED + i)
    with code.loop(count - full * UNROLLED) as index:
        emit(full * UNROLLED + index)


def number(value: float) -> Any:
    return tirx.const(value, "float32")


def load(source: Any, index: Any) -> Any:
    return tirx.BufferLoad(source, [integer(index)])


def load_vector(source: Any, index: Any, lanes: int) -> Any:
    return tirx.BufferLoad(source, [tirx.Ramp(integer(index), integer(1), lanes)])


def load_lanes(source: Any, index: Any, count: int) -> Any:
    """Return one value, or a vector of `count` consecutive lanes."""
    return load(source, index) if count == 1 else load_vector(source, index, count)


def splat(value: Any, lanes: int) -> Any:
    """Return a vector of one value in every lane."""
    return tirx.Broadcast(number(value) if isinstance(value, float | int) else value, lanes)


def literal(values: Sequence[float]) -> Any:
    """Return a constant vector."""
    if len(set(values)) == 1:
        return splat(values[0], len(values))
    return tirx.Shuffle([number(v) for v in values], [integer(i) for i in range(len(values))])


def to_float(value: Any, lanes: int = 1) -> Any:
    return tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", value)


def bits(kind: str, value: Any) -> Any:
    """Return the same bits as another type."""
    return tirx.reinterpret(kind, value)


def instruction(kind: str, name: str, *arguments: Any) -> Any:
    """Return one of LLVM's intrinsics, which gives a `kind`."""
    return tirx.call_llvm_pure_intrin(kind, name, *arguments)


def lanes_of(value: Any, *indices: int) -> Any:
    """Return a vector of some lanes of a vector."""
    return tirx.Shuffle([value], [integer(i) for i in indices])


def joined(first: Any, second: Any, *indices: int) -> Any:
    """Return a vector of some lanes of two vectors of one type, numbered through."""
    return tirx.Shuffle([first, second], [integer(i) for i in indices])


def rsqrt(value: Any) -> Any:
    """Return 1 / sqrt of a scalar."""
    return number(1.0) / tirx.sqrt(value)


def lane_sum(code: Code, vector: Any, lanes: int) -> Any:
    """Sum of the lanes of a vector, as a scalar."""
    return _fold(code, vector, lanes, lambda a, b: a + b)


def lane_max(code: Code, vector: Any, lanes: int) -> Any:
    """Return the largest lane of a vector, as a scalar."""
    return _fold(code, vector, lanes, tirx.max)


def lane_min(code: Code, vector: Any, lanes: int) -> Any:
    """Return the smallest lane of a vector, as a scalar."""
    return _fold(code, vector, lanes, tirx.min)


def pairwise(code: Code, combine: Callable[[Any, Any], Any], values: Sequence[Any]) -> Any:
    """Return all values combined, neighbours first, so that few wait for each other."""
    values = list(values)
    while len(values) > 1:
        rest = [values[-1]] if len(values) % 2 else []
        values = [code.let(combine(a, b)) for a, b in zip(values[::2], values[1::2], strict=False)] + rest
    return values[0]


def _fold(code: Code, vector: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    while lanes > 1:
        lanes //= 2
        low, high = ([integer(i) for i in part] for part in (range(lanes), range(lanes, 2 * lanes)))
        vector = code.let(combine(tirx.Shuffle([vector], low), tirx.Shuffle([vector], high)))
    return vector


def exp(code: Code, x: Any, lanes: int) -> Any:
    """Return e^x, relative error below 2e-7 (measured); x is clamped to [-87.3, 88]."""
    x = code.let(tirx.max(tirx.min(x, splat(88.0, lanes)), splat(-87.3, lanes)))
    steps = code.let(tirx.floor(x * splat(LOG2_E, lanes) + splat(0.5, lanes)))
    r = code.let(x - steps * splat(LN2_HIGH, lanes) - steps * splat(LN2_LOW, lanes))
    tail = code.let(_polynomial(EXP, r, lanes) * r * r + r + splat(1.0, lanes))
    exponent = tirx.Cast(f"int32x{lanes}", steps) + tirx.Broadcast(integer(127), lanes)
    power = tirx.reinterpret(f"float32x{lanes}", exponent * tirx.Broadcast(integer(1 << 23), lanes))
    return code.let(tail * power)


def erf(code: Code, x: Any, lanes: int) -> Any:
    """Return the error function, absolute error below 4e-7 (measured)."""
    x = code.let(tirx.max(tirx.min(x, splat(4.0, lanes)), splat(-4.0, lanes)))
    square = code.let(x * x)
    return code.let(x * _polynomial(ERF_P, square, lanes) / _polynomial(ERF_Q, square, lanes))


def activate(code: Code, kind: Activation, x: Any, lanes: int, *, coarse: bool = False) -> Any:
    """Return an FFN's activation function on a vector; 0 stays 0, so padded columns stay 0.

    A `coarse` one may be 5e-4 off, for where it is rounded to steps that are far wider, and need not divide.
    """
    if coarse and kind == "gelu":
        return _coarse_gelu(code, code.let(x), lanes)
    one, half = splat(1.0, lanes), splat(0.5, lanes)
    x = code.let(x)
    if kind == "relu":
        return tirx.max(x, splat(0.0, lanes))
    if kind == "gelu":
        return x * half * (one + erf(code, x * splat(SQRT_HALF, lanes), lanes))
    if kind == "gelu_tanh":
        inner = x * splat(0.7978845608028654, lanes) * (one + splat(0.044715, lanes) * x * x)
        return x / (one + exp(code, splat(-2.0, lanes) * inner, lanes))
    factor = 1.702 if kind == "quick_gelu" else 1.0
    return x / (one + exp(code, splat(-factor, lanes) * x, lanes))


def _coarse_gelu(code: Code, x: Any, lanes: int) -> Any:
    end = splat(NORMAL_END, lanes)
    inner = code.let(tirx.max(tirx.min(x, end), splat(-NORMAL_END, lanes)))
    share = inner * _polynomial(NORMAL, code.let(inner * inner), lanes) + splat(0.5, lanes)
    return x * share


def _polynomial(coefficients: Sequence[float], x: Any, lanes: int) -> Any:
    """Return Horner's scheme, highest power first."""
    value = splat(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        value = value * x + splat(coefficient, lanes)
    return value


def _bytes(kind: Any) -> int:
    return np.dtype(str(kind)).itemsize


def _prim(kind: str) -> Any:
    from tvm.ir import PrimType

    return PrimType(kind)


def _sequence(statements: Sequence[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(integer(0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
