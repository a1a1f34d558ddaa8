"""The stages of a Program as lists of kernels: stem, branch bodies, gates, skip rows and head, each with its weights.

A stage says which kernels run in which order, where their values lie in the arena, and how its weights are packed.
Weights of a branch and of its gate are apart: a closed branch's are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgevit.backends.tvm.codegen import integers
from edgevit.backends.tvm.codegen.dots import dot
from edgevit.backends.tvm.codegen.integers import Integers, Matrix
from edgevit.backends.tvm.codegen.layout import (
    Arena,
    Blob,
    Place,
    pack,
    pad_columns,
    pad_heads,
)
from edgevit.backends.tvm.codegen.schedules import Isa, Product, Tile, pad
from edgevit.backends.tvm.kernels import attention_int8, common, int8
from edgevit.backends.tvm.kernels.attention import Heads, attention, scratch
from edgevit.backends.tvm.kernels.common import Epilogue, Weights
from edgevit.backends.tvm.parts import t2t_stem
from edgevit.program.program import Program
from edgevit.program.spec import BranchSpec, ProgramSpec
from edgevit.schema.quant_plan import LinearPlan, QuantPlan

Choose = Callable[[Isa, Product], Tile]


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


class Stages:
    """Makes the stages of one Program and collects how large an arena they need together."""

    def __init__(self, program: Program, isa: Isa, choose: Choose, plan: QuantPlan | None = None) -> None:
        self.program, self.spec, self.isa, self.choose = program, program.spec, isa, choose
        self.plan = plan or QuantPlan(linears=())
        self.dot = dot(isa, self.plan.weight_bits)
        self.arena = Arena(isa.lanes)
        self.stream = self.arena.place(self.spec.tokens, self.spec.dim)
        self._base = self.arena.mark()

    def stem(self, states: tuple[bool, ...]) -> Stage:
        """Map image to stream, and the state of every branch that no gate decides."""
        spec, stage = self.spec, self._stage("stem")
        weights = self.program.weights
        prefix, stride = spec.stem.prefix, self.stream.stride
        entry, weight = self._entry("stem"), weights["stem.weight"]
        table = weights["stem.pos"] + weights["stem.bias"]
        patches: Matrix
        if spec.stem.kind == "patch":
            weight, offset = fold_normalisation(spec, weight)
            table = table + offset
            if entry is not None:
                # The kernel sees pixel - zero_point: a zero point near the mean pixel keeps rounding from adding up.
                table = table + entry.zero_point * weight.sum(axis=0)
                if self.plan.activations == "int8":
                    # Pixels are uint8 whatever other inputs are.
                    entry = replace(entry, zero_point=entry.zero_point - 128)
            patches = self._input(stage, entry, spec.patches, weight.shape[0])
            build = integers.pixels if isinstance(patches, Integers) else common.patches
            image = spec.image
            stage.call("patches", build, image.height, image.width, spec.stem.patch, patches, takes=("image", "arena"))
        else:
            patches = self._quantized(stage, entry, t2t_stem.tokens(self, stage))
        target = self.stream.after(prefix)
        position = stage.blob.add(pad_columns(table, stride))
        stage.product("stem", entry, patches, target, weight, None, Epilogue(table=position))
        rows = stage.blob.add(pad_columns(weights["stem.prefix"], stride)) if prefix else 0
        stage.call("start", common.start, self.stream, rows, prefix, states, takes=("arena", "weights", "gates"))
        if spec.stem.norm:
            stage.norm("stem.norm", self.stream, self.stream)
        return stage.done()

    def branch(self, branch: BranchSpec, rows: int, read: int) -> Stage:
        """Compute stream[:rows] += f(norm(stream[:read]))."""
        stage = self._stage(branch.name)
        if branch.kind == "mhsa":
            self._mhsa(stage, branch, rows, read)
        else:
            self._ffn(stage, branch, rows)
        return stage.done()

    def _ffn(self, stage: StageWriter, branch: BranchSpec, rows: int) -> None:
        name, stream = branch.name, self.stream.first(rows)
        weights = self.program.weights
        first, second = (self._entry(f"{name}.{part}") for part in ("fc1", "fc2"))
        normed = self._input(stage, first, rows, self.spec.dim)
        hidden = self._input(stage, second, rows, branch.units)
        stage.norm(f"{name}.norm", stream, normed)
        fc1, fc2 = (weights[f"{name}.{part}.weight"] for part in ("fc1", "fc2"))
        inner = Epilogue(activation=branch.activation)
        stage.product("fc1", first, normed, hidden, fc1, weights[f"{name}.fc1.bias"], inner)
        stage.product("fc2", second, hidden, stream, fc2, weights[f"{name}.fc2.bias"], Epilogue(onto=True))

    def _mhsa(self, stage: StageWriter, branch: BranchSpec, rows: int, read: int) -> None:
        name, spec, isa = branch.name, self.spec, self.isa
        weights, heads, width = self.program.weights, branch.units, branch.head_dim
        stride = pad(width, isa.lanes)
        inner = heads * stride
        entry, last = self._entry(f"{name}.qkv"), spread(self._entry(f"{name}.proj"), width, stride)
        # What attention writes lies on the normed rows, which nobody reads any more.
        begin = self.arena.mark()
        context = self._input(stage, last, rows, inner)
        end = self.arena.mark()
        self.arena.release(begin)
        source = self._input(stage, entry, read, spec.dim)
        self.arena.release(max(end, self.arena.mark()))
        qkv = self.arena.place(read, 3 * inner)
        stage.norm(f"{name}.norm", self.stream.first(read), source)
        query, key, value = (qkv.columns(part * inner, inner) for part in range(3))
        weight, bias = self._qkv(branch, stride)
        if rows == read:
            stage.product("qkv", entry, source, qkv, weight, bias, Epilogue())
        else:
            query, rest = query.first(rows), qkv.columns(inner, 2 * inner)
            stage.product("q", entry, source.first(rows), query, weight[:, :inner], bias[:inner], Epilogue())
            stage.product("kv", entry, source, rest, weight[:, inner:], bias[inner:], Epilogue())
        if branch.qk_norm:
            for part, place, factor in (("q", query, branch.scale), ("k", key, 1.0)):
                group = Place(offset=place.offset, rows=place.rows, width=width, stride=place.stride)
                stage.norm(f"{name}.{part}_norm", group, group, eps=spec.qk_norm_eps, factor=factor, groups=heads)
        split = Heads(count=heads, width=width, stride=stride, query=query, key=key, value=value)
        self._attention(stage, name, split, context)
        proj = pad_heads(weights[f"{name}.proj.weight"].T, heads, width, stride).T
        target, bias = self.stream.first(rows), weights[f"{name}.proj.bias"]
        stage.product("proj", last, context, target, proj, bias, Epilogue(onto=True))

    def _attention(self, stage: StageWriter, name: str, heads: Heads, context: Matrix) -> None:
        isa = self.isa
        shape = Product(rows=heads.query.rows, columns=heads.key.rows, depth=heads.width)
        if name not in self.plan.attentions:
            tile = self.choose(isa, shape)
            work = scratch(self.arena, heads, tile, isa)
            stage.call("attention", attention, heads, context, work, tile)
            return
        how = dot(isa, 7)  # the fastest: it chooses the scales itself, so that nothing saturates
        tile = self.choose(isa, replace(shape, dot=how))
        places = attention_int8.scratch(self.arena, heads, how, tile, isa)
        least = attention_int8.instructions(how)
        counted = Counted(linear=f"{name}.attention", mnemonic=how.mnemonic, at_least=least)
        stage.call("attention", attention_int8.attention, heads, context, places, how, tile, counted=counted)

    def _qkv(self, branch: BranchSpec, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of query, key and value, every head padded to whole vectors, softmax's scale in the query."""
        weight, bias = (self.program.weights[f"{branch.name}.qkv.{part}"].copy() for part in ("weight", "bias"))
        if not branch.qk_norm:
            weight[:, : branch.width] *= np.float32(branch.scale)
            bias[: branch.width] *= np.float32(branch.scale)
        shape = (3 * branch.units, branch.head_dim, stride)
        return pad_heads(weight, *shape), pad_heads(bias, *shape)

    def skip(self, branch: BranchSpec, rows: int) -> Stage:
        """Compute stream[:rows] += the branch's skip rows."""
        stage = self._stage(f"{branch.name}.skip")
        values = pad_columns(self.program.weights[f"{branch.name}.skip"], self.stream.stride)
        offset = stage.blob.add(values)
        stage.call("skip", common.add_skip_rows, self.stream.first(rows), offset, self.spec.stem.prefix)
        return stage.done()

    def gate(self, branch: BranchSpec, index: int, read: int) -> Stage:
        """Return the gate's decision, whose only kernel returns it."""
        assert branch.gate is not None
        spec, stage = self.spec, self._stage(f"{branch.name}.gate")
        prefix = spec.stem.prefix
        pooled = self.stream.first(1) if branch.gate.pool == "prefix" else self.stream.first(read).after(prefix)
        work = self.arena.place(1, spec.dim)
        weights = self.program.weights
        offset = stage.blob.add(pad_columns(weights[f"{branch.name}.gate.weight"], self.stream.stride))
        # In float64: the sum of two float32 is then rounded once, as in the other backends' graphs.
        limit = branch.gate.threshold - float(weights[f"{branch.name}.gate.bias"][0])
        stage.call(
            "gate",
            common.decide,
            len(spec.branches),
            pooled,
            work,
            offset,
            limit,
            spec.norm_eps,
            index,
            takes=("arena", "weights", "effort", "gates"),
        )
        return stage.done()

    def head(self, read: int) -> Stage:
        """Compute stream[:read] to logits."""
        spec, head, stage = self.spec, self.spec.head, self._stage("head")
        weights = self.program.weights
        source = self.stream.first(head.prefix if head.pool == "prefix" else read)
        if head.pool == "mean":
            source = source.after(spec.stem.prefix)
        if head.norm:
            normed = self.arena.place(source.rows, spec.dim)
            stage.norm("head.norm", source, normed)
            source = normed
        tokens = source.rows if head.pool == "prefix" else 1
        if head.pool == "mean":
            pooled = self.arena.place(1, spec.dim)
            stage.call("mean", common.average, source, pooled, takes=("arena",))
            source = pooled
        # Rows lie one behind the other: joined they are one row, with zeros between them where dim is no whole vectors.
        row = Place(offset=source.offset, rows=1, width=tokens * source.stride, stride=tokens * source.stride)
        if head.pooled_norm:
            target = self.arena.place(1, row.width)
            stage.norm("head.pooled_norm", row, target, tokens=tokens)
            row = target
        if head.linear:
            split = weights["head.weight"].reshape(tokens, spec.dim, -1)
            weight = np.pad(split, ((0, 0), (0, source.stride - spec.dim), (0, 0))).reshape(row.width, -1)
            logits = self.arena.place(1, head.classes)
            entry = spread(self._entry("head"), spec.dim, source.stride)
            read_as = self._quantized(stage, entry, row)
            stage.product("head", entry, read_as, logits, weight, weights["head.bias"], Epilogue())
            stage.call("logits", common.copy_out, logits, head.classes, 1, takes=("arena", "logits"))
        else:
            stage.call("logits", common.copy_out, source, spec.dim, tokens, takes=("arena", "logits"))
        return stage.done()

    def _entry(self, linear: str) -> LinearPlan | None:
        """Return the plan of a Linear that is int8."""
        entry = self.plan.linear(linear)
        return entry if entry is not None and entry.int8 else None

    def _input(self, stage: StageWriter, entry: LinearPlan | None, rows: int, width: int) -> Matrix:
        """Return a place for a Linear's input, of the kind that its plan wants."""
        if entry is None:
            return self.arena.place(rows, width)
        depth, stored = self.dot.depth, self.dot.stored
        return integers.place_integers(self.arena, stage.blob, rows, width, depth, stored, self.plan, entry)

    def _quantized(self, stage: StageWriter, entry: LinearPlan | None, source: Place) -> Matrix:
        """Return the same values as a Linear's input of the kind that its plan wants."""
        if entry is None:
            return source
        rounded = self._input(stage, replace(entry, outliers=()), source.rows, source.width)
        stage.call("quantize", integers.quantize, source, rounded)
        assert isinstance(rounded, Integers)
        return replace(rounded, exact=source)

    def _stage(self, name: str) -> StageWriter:
        self.arena.release(self._base)
        return StageWriter(name, self)


class StageWriter:
    """A stage being made."""

    def __init__(self, name: str, owner: Stages) -> None:
        self.name, self.owner = name, owner
        self.blob = Blob()
        self._kernels: list[Kernel] = []

    def call(
        self,
        name: str,
        build: Callable[..., Any],
        *arguments: Any,
        takes: tuple[str, ...] = ("arena", "weights"),
        counted: Counted | None = None,
    ) -> None:
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
    ) -> None:
        """LayerNorm with the Program's `name.weight` and `name.bias`, both times `factor`."""
        self.call("norm", common.layer_norm, source, target, *self.norm_weights(name, eps, factor, tokens), groups)

    def norm_weights(
        self, name: str, eps: float | None = None, factor: float = 1.0, tokens: int = 1
    ) -> tuple[int, int, int, float]:
        """Return what a LayerNorm takes behind its source and target: width, where scale and shift are, epsilon."""
        weights, rows = self.owner.program.weights, []
        for part in ("weight", "bias"):
            values = weights[f"{name}.{part}"].reshape(tokens, -1) * np.float32(factor)
            rows.append(self.blob.add(pad_columns(values, pad(values.shape[1], self.owner.isa.lanes))))
        return weights[f"{name}.weight"].size, rows[0], rows[1], self.owner.spec.norm_eps if eps is None else eps

    def product(
        self,
        name: str,
        entry: LinearPlan | None,
        source: Matrix,
        target: Matrix,
        weight: np.ndarray,
        bias: np.ndarray | None,
        epilogue: Epilogue,
    ) -> None:
        """A Linear, int8 with an `entry`; weight `[depth, columns]`."""
        if isinstance(source, Place):
            packed, tile = self.product_weights(source.rows, weight, bias)
            self.call(name, common.product, source, target, packed, tile, epilogue)
            return
        assert entry is not None
        isa, how = self.owner.isa, self.owner.dot
        columns = pad(weight.shape[1], isa.lanes)
        tile = self.owner.choose(isa, Product(rows=source.rows, columns=columns, depth=weight.shape[0], dot=how))
        weights = int8.add_weights(self.blob, weight, bias, self.owner.plan, entry, how, tile)
        least = int8.instructions(source.rows, weights.columns, how, tile)
        counted = Counted(linear=entry.name, mnemonic=how.mnemonic, at_least=least)
        self.call(name, int8.product, source, target, weights, how, tile, epilogue, counted=counted)

    def product_weights(self, rows: int, weight: np.ndarray, bias: np.ndarray | None) -> tuple[Weights, Tile]:
        """Packed weights of a float Linear that takes so many rows at a time, and the tile that they are packed for."""
        isa, depth = self.owner.isa, weight.shape[0]
        columns = pad(weight.shape[1], isa.lanes)
        tile = self.owner.choose(isa, Product(rows=rows, columns=columns, depth=depth))
        offset = self.blob.add(pack(pad_columns(weight, columns), tile, isa.lanes))
        row = None if bias is None else self.blob.add(pad_columns(bias, columns))
        return Weights(offset=offset, depth=depth, columns=columns, bias=row), tile

    def done(self) -> Stage:
        """Return the stage; only now the size of its weights is known, which every kernel that takes them checks."""
        size = self.blob.size
        made = (
            replace(kernel, arguments=(size, *kernel.arguments)) if "weights" in kernel.takes else kernel
            for kernel in self._kernels
        )
        return Stage(name=self.name, kernels=tuple(made), weights=self.blob.array())


def spread(entry: LinearPlan | None, width: int, stride: int) -> LinearPlan | None:
    """Return a plan whose input comes in groups of `width` columns that lie `stride` apart."""
    if entry is None or not entry.outliers:
        return entry
    return replace(entry, outliers=tuple(c // width * stride + c % width for c in entry.outliers))


def fold_normalisation(spec: ProgramSpec, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[patch * patch * 3, dim]` for normalised pixels to (weights, offset `[dim]`) for pixels 0..255."""
    mean, std = (
        np.tile(np.array(v, dtype=np.float64), len(weight) // 3)[:, None] for v in (spec.image.mean, spec.image.std)
    )
    scaled = weight.astype(np.float64) / std
    return (scaled / 255.0).astype(np.float32), -(scaled * mean).sum(axis=0).astype(np.float32)
