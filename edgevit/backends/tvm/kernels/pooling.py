"""The mean of rows, and what is made of it: a gate's decision, and the row of a head that pools by averaging."""

from __future__ import annotations

from typing import Any

from edgevit.backends.tvm.codegen.code import (
    Code,
    buffer,
    integer,
    lane_sum,
    load,
    load_vector,
    number,
    splat,
    tensor,
)
from edgevit.backends.tvm.codegen.layout import Alive, Place
from edgevit.backends.tvm.codegen.schedules import Isa
from edgevit.backends.tvm.kernels.common import alive_rows
from edgevit.backends.tvm.kernels.norm import moments


def decide(
    isa: Isa,
    arena: int,
    blob: int,
    states: int,
    pooled: Place,
    scratch: Place,
    weight: int,
    limit: float,
    eps: float,
    index: int,
    sizes: Place | None = None,
    alive: Alive | None = None,
) -> Any:
    """The gate: LN(mean of the rows of `pooled`) . weight + effort > limit; returns it and writes gates[index].

    `sizes` weigh the rows in their mean, see `mean_rows`.
    """
    code, lanes = Code(), isa.lanes
    memory, values, decisions = buffer("arena", arena), buffer("weights", blob), buffer("gates", states, "uint8")
    effort = tensor("effort", ())
    base: Any = pooled.offset
    given, there = alive_rows(code, alive, 0 if alive is None else alive.prefix + pooled.rows)
    if pooled.rows > 1:
        mean_rows(code, memory, pooled, scratch, lanes, sizes, _patches(alive, there))
        base = scratch.offset
    mean, scaled = moments(code, memory, base, pooled.width, pooled.width, eps, lanes)
    sums = code.register(splat(0.0, lanes))
    with code.loop(-(-pooled.width // lanes)) as v:
        x = (load_vector(memory, base + v * lanes, lanes) - splat(mean, lanes)) * splat(scaled, lanes)
        sums.set(sums.value + x * load_vector(values, weight + v * lanes, lanes))
    logit = lane_sum(code, sums.value, lanes) + effort[()]
    is_open = code.let(logit > number(limit))
    code.store(decisions, index, is_open.astype("uint8"))
    code.give(is_open)
    return code.function([memory, values, effort, decisions, *given], result="bool")


def _patches(alive: Alive | None, there: Any) -> Any:
    return None if alive is None else there - integer(alive.prefix)


def mean_rows(
    code: Code,
    memory: Any,
    source: Place,
    target: Place,
    lanes: int,
    sizes: Place | None = None,
    there: Any = None,
) -> None:
    """Make target row 0 = mean over the rows of source; each row counts as often as `sizes` says, which has all rows.

    `sizes` is as long as there were rows when each of them counted once. Of the rows, `there` exist (None: all).
    """
    with code.loop(-(-source.width // lanes)) as v:
        sums = code.register(splat(0.0, lanes))
        with code.loop(source.rows if there is None else there) as row:
            x = load_vector(memory, source.offset + row * source.stride + v * lanes, lanes)
            x = x if sizes is None else x * splat(load(memory, sizes.offset + row), lanes)
            sums.set(sums.value + x)
        mean = sums.value * splat(1 / (source.rows if sizes is None else sizes.width), lanes)
        code.store_vector(memory, target.offset + v * lanes, mean, lanes)


def average(
    isa: Isa, arena: int, source: Place, target: Place, sizes: Place | None = None, alive: Alive | None = None
) -> Any:
    """Make target row 0 = mean over the rows of source, weighed by `sizes`; see `mean_rows`."""
    code = Code()
    memory = buffer("arena", arena)
    given, there = alive_rows(code, alive, 0 if alive is None else alive.prefix + source.rows)
    mean_rows(code, memory, source, target, isa.lanes, sizes, _patches(alive, there))
    return code.function([memory, *given])
