"""Powers of 2 in the softmax of wide vectors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.tvm.available import import_or_skip

import_or_skip()

from edgevit.backends.tvm.codegen import code as c  # noqa: E402
from edgevit.backends.tvm.codegen.schedules import isa  # noqa: E402
from edgevit.backends.tvm.kernels.attention import power  # noqa: E402
from tests.backends.tvm.compiled import HERE, call  # noqa: E402


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_powers_are_as_accurate_as_stated(name: str) -> None:
    if name not in HERE:
        pytest.skip(f"runs on a processor with {name} only")
    wide = isa(name)
    x = np.concatenate([np.linspace(-126, 0, 159_984), np.linspace(-1e30, -127, 16)]).astype(np.float32)
    code, source, target = c.Code(), c.buffer("x", x.size), c.buffer("y", x.size)
    with code.loop(x.size // wide.lanes) as i:
        value = power(code, c.load_vector(source, i * wide.lanes, wide.lanes), wide.lanes)
        code.store_vector(target, i * wide.lanes, value, wide.lanes)
    y = np.zeros_like(x)
    call(code.function([source, target]), x, y, isa=wide)
    expected = 2.0 ** np.maximum(x.astype(np.float64), -126)
    assert np.abs(y / expected - 1).max() < 3e-7
    assert np.abs(y[-16:] * 2.0**126 - 1).max() < 3e-7
