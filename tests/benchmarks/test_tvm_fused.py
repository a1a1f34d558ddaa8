"""What fusing brings: what is taken apart gives the same outputs, and all calls count."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from benchmarks.arm import dense_blocks  # noqa: E402
from benchmarks.tvm_counts import stages_of  # noqa: E402
from benchmarks.tvm_fused import TARGET, Fused, Pair, brought, pairs, render  # noqa: E402
from edgevit.backends.tvm.codegen.integers import Integers  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from tests.backends.tvm.compiled import HERE, call  # noqa: E402

RNG = np.random.default_rng(0)
KERNELS = {"avx512vnni": {"norm", "fc1", "attention"}, "avx2": {"norm", "fc1"}}


@cache
def found(name: str) -> tuple[Pair, ...]:
    wide = isa(name)
    stages, arena = stages_of(dense_blocks(2), wide, 7 if wide.name == "avx2" else 8, attention=True)
    return tuple(pairs([kernel for stage in stages for kernel in stage.kernels], arena, wide.lanes))


@pytest.mark.parametrize("name", list(KERNELS))
def test_what_is_taken_apart_gives_the_same_outputs(name: str) -> None:
    if name not in HERE:
        pytest.skip(f"runs on a processor with {name} only")
    wide = isa(name)
    made = found(name)
    assert {pair.kernel for pair in made} == KERNELS[name]
    for pair in made:
        weights = np.abs(RNG.standard_normal(pair.fused.arguments[0])).astype(np.float32)
        given = RNG.standard_normal(pair.arena).astype(np.float32)
        fused, *apart = (build(wide, pair.arena) for build in pair.functions.values())
        target, memory, other = pair.fused.arguments[TARGET], given.copy(), given.copy()
        call(fused, memory, weights, isa=wide)
        for function in apart:
            call(function, other, weights, isa=wide)
        place = target.place if isinstance(target, Integers) else target
        one, two = (m[place.offset : place.end].view(np.uint32) for m in (memory, other))
        np.testing.assert_array_equal(one, two)
        assert (one != given[place.offset : place.end].view(np.uint32)).mean() > 0.9


def test_calls_with_as_many_rows_count_together() -> None:
    """Of two blocks, attention and FFN of the last one answer for the class token alone."""
    calls = {pair.kernel: pair.calls for pair in found("avx512vnni")}
    assert calls == {"norm": 3, "fc1": 1, "attention": 1}


def test_what_is_saved_is_told_of_the_whole() -> None:
    pair = found("avx512vnni")[0]
    (row,) = brought([pair], dict(zip(pair.functions, (0.5, 0.75, 0.25), strict=True)))
    assert row == Fused(what=pair.what, kernel="norm", calls=3, fused_ms=1.5, apart_ms=3.0)
    assert render([row], 10.0)[-1] == f"| {pair.what} | norm | 3 | 1.500 | 3.000 | 15.0% |"
