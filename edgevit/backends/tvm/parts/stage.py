"""A stage: which kernels run in which order, where their values lie in the arena, and how its weights are packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgevit.backends.tvm.codegen import integers
from edgevit.backends.tvm.codegen.dots import dot
from edgevit.backends.tvm.codegen.integers import FURTHEST, STEPS, Integers, Matrix
from edgevit.backends.tvm.codegen.layout import Alive, Arena, Blob, Place, pack, pad_columns
from edgevit.backends.tvm.codegen.schedules import Isa, Product, Tile, pad
from edgevit.backends.tvm.kernels import common, int8, norm, norm_neon
from edgevit.backends.tvm.kernels.common import Epilogue, Weights
from edgevit.backends.tvm.kernels.merge import Choice, Sizes, choice
from edgevit.program.program import Program
from edgevit.program.tokens import patches_before
from edgevit.schema.quant_plan import LinearPlan, QuantPlan

Choose = Callable[[Isa, Product], Tile]
ROUNDED = 2.0  # what rounding adds to the sum of a column's weights, at most, with room to spare


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the code of an int8 Linear has: at least so many instructions of a mnemonic (a regular expression)."""

    linear: str
    mnemonic: str
    at_least: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One call of a kernel: `build(isa, arena elements, *arguments)` makes it, `takes` names its parameters.

    Equal kernels of different branches are one function. `counted` says what is int8 about it.
    """

    name: str
    build: Callable[..., Any]
    arguments: tuple[Any, ...]
    takes: tuple[str, ...] = ("arena", "weights")
    counted: Counted | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Kernels that run one after another with one array of weights (empty where they need none)."""

    name: str
    kernels: tuple[Kernel, ...]
    weights: np.ndarray = field(repr=False)


class Shared:
    """What all stages of one Program share: it and its plan, the instruction set, the arena and the stream in there.

    `sizes` of the stream's tokens are beside it where tokens are merged, and what every point has chosen.
    """

    def __init__(self, program: Program, isa: Isa, choose: Choose, plan: QuantPlan | None = None) -> None:
        self.program, self.spec, self.isa, self.choose = program, program.spec, isa, choose
        self.plan = plan or QuantPlan(linears=())
        self.dot = dot(isa, self.plan.weight_bits)
        self.arena = Arena(isa.lanes)
        self.stream = self.arena.place(self.spec.tokens, self.spec.dim)
        self.sizes: Sizes | None = None
        if self.spec.merges:
            patches, bias = self.arena.place(1, self.spec.patches), self.arena.place(2, self.spec.tokens)
            self.sizes = Sizes(patches=patches, bias=bias)
        self.choices: dict[str, Choice] = {
            point.after: choice(self.arena, patches)
            for point, patches in zip(self.spec.merges, patches_before(self.spec), strict=True)
        }

    def entry(self, linear: str) -> LinearPlan | None:
        """Return the plan of a Linear that is int8."""
        entry = self.plan.linear(linear)
        return entry if entry is not None and entry.int8 else None


class StageWriter:
    """A stage being made."""

    def __init__(self, name: str, shared: Shared) -> None:
        self.name, self.shared = name, shared
        self.blob = Blob()
        self._kernels: list[Kernel] = []

    def call(
        self,
        name: str,
        build: Callable[..., Any],
        *arguments: Any,
        takes: tuple[str, ...] = ("arena", "weights"),
        counted: Counted | None = None,
        alive: Alive | None = None,
    ) -> None:
        """Add a kernel; with `alive` that is its last argument, and it takes the numbers of tokens too."""
        if alive is not None:
            arguments, takes = (*arguments, alive), (*takes, "tokens")
        self._kernels.append(Kernel(name=name, build=build, arguments=arguments, takes=takes, counted=counted))

    def norm(
        self,
        name: str,
        source: Place,
        target: Matrix,
        *,
        eps: float | None = None,
        factor: float = 1.0,
        groups: int = 1,
        tokens: int = 1,
        alive: Alive | None = None,
    ) -> None:
        """LayerNorm with the Program's `name.weight` and `name.bias`, both times `factor`."""
        weights = self.norm_weights(name, eps, factor, tokens)
        if isinstance(target, Integers) and target.stored == "int8" and (groups, tokens, factor) == (1, 1, 1.0):
            gain, offset = (self.shared.program.weights[f"{name}.{part}"] for part in ("weight", "bias"))
            rows = (gain / np.float32(target.scale), offset / np.float32(target.scale) + np.float32(target.zero))
            steps = tuple(self.blob.add(pad_columns(row, pad(row.size, self.shared.isa.lanes))) for row in rows)
            self.call("norm", norm_neon.layer_norm, source, target, *weights, steps, alive=alive)
            return
        # No value of a normed row is further from 0 than the root of their number.
        values = self.shared.program.weights
        scale, shift = (float(np.abs(values[f"{name}.{part}"]).max()) * abs(factor) for part in ("weight", "bias"))
        target = _bounded(target, scale * weights[0] ** 0.5 + shift)
        self.call("norm", norm.layer_norm, source, target, *weights, groups, tokens, alive=alive)

    def norm_weights(
        self, name: str, eps: float | None = None, factor: float = 1.0, tokens: int = 1
    ) -> tuple[int, int, int, float]:
        """Return what a LayerNorm takes behind its source and target: width, where scale and shift are, epsilon."""
        weights, rows = self.shared.program.weights, []
        for part in ("weight", "bias"):
            values = weights[f"{name}.{part}"].reshape(tokens, -1) * np.float32(factor)
            rows.append(self.blob.add(pad_columns(values, pad(values.shape[1], self.shared.isa.lanes))))
        return weights[f"{name}.weight"].size, rows[0], rows[1], self.shared.spec.norm_eps if eps is None else eps

    def product(
        self,
        name: str,
        entry: LinearPlan | None,
        source: Matrix,
        target: Matrix,
        weight: np.ndarray,
        bias: np.ndarray | None,
        epilogue: Epilogue,
        alive: Alive | None = None,
    ) -> None:
        """A Linear, int8 with an `entry`; weight `[depth, columns]`."""
        if isinstance(source, Place):
            packed, tile = self.product_weights(source.rows, weight, bias)
            self.call(name, common.product, source, target, packed, tile, epilogue, alive=alive)
            return
        assert entry is not None
        isa, plan, columns = self.shared.isa, self.shared.plan, pad(weight.shape[1], self.shared.isa.lanes)
        how = self.shared.dot
        if how.joining(plan.int16_products) != how:
            steps, _ = int8.padded_steps(weight, bias, plan, entry, how)
            how = how.for_weight(steps, plan.int16_products)
        tile = self.shared.choose(isa, Product(rows=source.rows, columns=columns, depth=weight.shape[0], dot=how))
        behind = None
        if isinstance(target, Integers) and epilogue.activation and not epilogue.onto and epilogue.table is None:
            behind = (epilogue.activation, target.scale)
        weights = int8.add_weights(self.blob, weight, bias, plan, entry, how, tile, behind)
        if not entry.outliers:
            furthest = STEPS * entry.scale * np.abs(weight).sum(axis=0) * ROUNDED + np.abs(0 if bias is None else bias)
            target = _bounded(target, float(furthest.max()))
        least = int8.instructions(source.rows, weights.columns, how, tile)
        counted = Counted(linear=entry.name, mnemonic=how.mnemonic, at_least=least)
        self.call(name, int8.product, source, target, weights, how, tile, epilogue, counted=counted, alive=alive)

    def product_weights(self, rows: int, weight: np.ndarray, bias: np.ndarray | None) -> tuple[Weights, Tile]:
        """Packed weights of a float Linear that takes so many rows at a time, and the tile that they are packed for."""
        isa, depth = self.shared.isa, weight.shape[0]
        columns = pad(weight.shape[1], isa.lanes)
        tile = self.shared.choose(isa, Product(rows=rows, columns=columns, depth=depth))
        offset = self.blob.add(pack(pad_columns(weight, columns), tile, isa.lanes))
        row = None if bias is None else self.blob.add(pad_columns(bias, columns))
        return Weights(offset=offset, depth=depth, columns=columns, bias=row), tile

    def input(self, entry: LinearPlan | None, rows: int, width: int) -> Matrix:
        """Return a place for a Linear's input, of the kind that its plan wants."""
        if entry is None:
            return self.shared.arena.place(rows, width)
        how = self.shared.dot
        return integers.place_integers(
            self.shared.arena, self.blob, rows, width, how.depth, how.stored, self.shared.plan, entry, how.together
        )

    def quantized(self, entry: LinearPlan | None, source: Place) -> Matrix:
        """Return the same values as a Linear's input of the kind that its plan wants."""
        if entry is None:
            return source
        rounded = self.input(replace(entry, outliers=()), source.rows, source.width)
        self.call("quantize", integers.quantize, source, rounded)
        assert isinstance(rounded, Integers)
        return replace(rounded, exact=source)

    def done(self) -> Stage:
        """Return the stage; only now the size of its weights is known, which every kernel that takes them checks."""
        size = self.blob.size
        made = (
            replace(kernel, arguments=(size, *kernel.arguments)) if "weights" in kernel.takes else kernel
            for kernel in self._kernels
        )
        return Stage(name=self.name, kernels=tuple(made), weights=self.blob.array())


def alive_of(sizes: Sizes | None, rows: int) -> Alive | None:
    """Return how many of so many rows of the stream there are, where that follows the image; prefix rows always are."""
    alive = None if sizes is None else sizes.alive
    return None if alive is None or rows <= alive.prefix else alive


def spread(entry: LinearPlan | None, width: int, stride: int) -> LinearPlan | None:
    """Return a plan whose input comes in groups of `width` columns that lie `stride` apart."""
    if entry is None or not entry.outliers:
        return entry
    return replace(entry, outliers=tuple(c // width * stride + c % width for c in entry.outliers))


def _bounded(target: Matrix, furthest: float) -> Matrix:
    """Return a target that knows whether values up to `furthest`, activated or not, stay near."""
    if not isinstance(target, Integers) or not target.scale:
        return target
    return replace(target, bounded=furthest / target.scale < FURTHEST)
