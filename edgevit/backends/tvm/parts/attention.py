"""Multi-head self-attention of a branch: its Linears, and the products between them in float32 or int8."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np

from edgevit.backends.tvm.codegen.dots import dot
from edgevit.backends.tvm.codegen.integers import Matrix
from edgevit.backends.tvm.codegen.layout import Place, pad_heads
from edgevit.backends.tvm.codegen.schedules import BY_LANE, Product, pad
from edgevit.backends.tvm.kernels import attention_int8, attention_neon, attention_registers
from edgevit.backends.tvm.kernels.attention import attention, scratch
from edgevit.backends.tvm.kernels.common import Epilogue
from edgevit.backends.tvm.kernels.heads import Heads
from edgevit.backends.tvm.kernels.merge import Sizes
from edgevit.backends.tvm.parts.stage import Counted, Shared, StageWriter, alive_of, spread
from edgevit.program.spec import BranchSpec


def mhsa(
    shared: Shared, stage: StageWriter, branch: BranchSpec, rows: int, read: int, sizes: Sizes | None = None
) -> None:
    """Compute stream[:rows] += f(norm(stream[:read])) with `branch.units` heads; keys count as `sizes` says."""
    name, spec, isa = branch.name, shared.spec, shared.isa
    weights, heads, width = shared.program.weights, branch.units, branch.head_dim
    stride = pad(width, isa.lanes)
    inner = heads * stride
    entry, last = shared.entry(f"{name}.qkv"), spread(shared.entry(f"{name}.proj"), width, stride)
    # What attention writes lies on the normed rows, which nobody reads any more.
    begin = shared.arena.mark()
    context = stage.input(last, rows, inner)
    end = shared.arena.mark()
    shared.arena.release(begin)
    source = stage.input(entry, read, spec.dim)
    shared.arena.release(max(end, shared.arena.mark()))
    qkv = shared.arena.place(read, 3 * inner)
    alive, left = alive_of(sizes, read), alive_of(sizes, rows)
    stage.norm(f"{name}.norm", shared.stream.first(read), source, alive=alive)
    query, key, value = (qkv.columns(part * inner, inner) for part in range(3))
    weight, bias = _qkv(shared, branch, stride)
    if rows == read:
        stage.product("qkv", entry, source, qkv, weight, bias, Epilogue(), alive)
    else:
        query, rest = query.first(rows), qkv.columns(inner, 2 * inner)
        stage.product("q", entry, source.first(rows), query, weight[:, :inner], bias[:inner], Epilogue())
        stage.product("kv", entry, source, rest, weight[:, inner:], bias[inner:], Epilogue(), alive)
    if branch.qk_norm:
        for part, place, factor, there in (("q", query, branch.scale, left), ("k", key, 1.0, alive)):
            group = Place(offset=place.offset, rows=place.rows, width=width, stride=place.stride)
            norm, eps = f"{name}.{part}_norm", spec.qk_norm_eps
            stage.norm(norm, group, group, eps=eps, factor=factor, groups=heads, alive=there)
    split = Heads(count=heads, width=width, stride=stride, query=query, key=key, value=value)
    _attention(shared, stage, name, split, context, sizes)
    proj = pad_heads(weights[f"{name}.proj.weight"].T, heads, width, stride).T
    target, bias = shared.stream.first(rows), weights[f"{name}.proj.bias"]
    stage.product("proj", last, context, target, proj, bias, Epilogue(onto=True), left)


def _attention(
    shared: Shared, stage: StageWriter, name: str, heads: Heads, context: Matrix, sizes: Sizes | None
) -> None:
    isa = shared.isa
    shape = Product(rows=heads.query.rows, columns=heads.key.rows, depth=heads.width)
    # Kernels of models that merge nothing are the same as ever: they take no bias.
    alive = alive_of(sizes, heads.key.rows)
    natural, binary = ((), ()) if sizes is None else ((sizes.bias.first(1),), (sizes.bias.after(1),))
    if name not in shared.plan.attentions:
        tile, second = shared.choose(isa, shape), None
        if isa.lanes > BY_LANE:
            second = shared.choose(isa, replace(shape, columns=heads.stride, depth=heads.key.rows))
        work = scratch(shared.arena, heads, tile, isa, second)
        stage.call("attention", attention, heads, context, work, tile, *natural, alive=alive)
        return
    how = dot(isa, 7)  # the fastest: it chooses the scales itself, so that nothing saturates
    # Where rows share blocks, scores and softmax are integers too.
    form: ModuleType = attention_int8 if how.together == 1 else attention_neon
    if attention_registers.fits(isa, heads, how):  # the tile of its second product
        form, shape = attention_registers, Product(rows=heads.query.rows, columns=heads.stride, depth=heads.key.rows)
    elif form is attention_int8:
        how = how.joining(shared.plan.int16_products)  # rounds its left sides to 7 bits too, where that is needed
    tile = shared.choose(isa, replace(shape, dot=how))
    places = form.scratch(shared.arena, heads, how, tile, isa)
    least = attention_int8.instructions(how)
    counted = Counted(linear=f"{name}.attention", mnemonic=how.mnemonic, at_least=least)
    arguments = (heads, context, places, how, tile, *binary)
    stage.call("attention", form.attention, *arguments, counted=counted, alive=alive)


def _qkv(shared: Shared, branch: BranchSpec, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of query, key and value, every head padded to whole vectors, softmax's scale in the query."""
    weight, bias = (shared.program.weights[f"{branch.name}.qkv.{part}"].copy() for part in ("weight", "bias"))
    if not branch.qk_norm:
        weight[:, : branch.width] *= np.float32(branch.scale)
        bias[: branch.width] *= np.float32(branch.scale)
    shape = (3 * branch.units, branch.head_dim, stride)
    return pad_heads(weight, *shape), pad_heads(bias, *shape)
