"""Memory as a budget: what fits is what the bound says, and not less than needed stays."""

from __future__ import annotations

import pytest

from edgevit.build.prediction import bound_bytes, gated, predict, scaled
from edgevit.compress.memory_budget import fits, parse_bytes, static_for
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.schema.target import load_target
from tests.tiny import tiny_program

TARGET = load_target("x86-64-onnxruntime")
PROGRAM = tiny_program(depth=3, dim=64, heads=4, hidden=256)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3.0MiB", 3 << 20),
        ("2500000", 2_500_000),
        ("3MB", 3_000_000),
        (" 512 KiB ", 512 << 10),
        ("1.5kb", 1500),
        ("9b", 9),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-3MB", "0", "0.1B", "3 apples", "1e6", "3.0.0MB", "٣MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="such as 3.0MiB"):
        parse_bytes(text)


def test_the_bound_is_that_of_a_prediction() -> None:
    assert bound_bytes(PROGRAM.spec, TARGET) == predict(PROGRAM, TARGET).bound_bytes
    assert bound_bytes(PROGRAM.spec, load_target("x86-64-openvino")) is None


def test_the_largest_model_that_fits_is_found() -> None:
    whole = bound_bytes(gated(PROGRAM.spec), TARGET)
    assert whole is not None
    assert static_for(PROGRAM.spec, TARGET, whole) == 1.0
    limit = int(whole * 0.6)
    static = static_for(PROGRAM.spec, TARGET, limit)
    assert 0.2 < static < 1.0
    shares = {total_macs(scaled(PROGRAM.spec, s / 100)) / total_macs(PROGRAM.spec): s / 100 for s in range(1, 101)}
    share = shares[min(shares, key=lambda macs: abs(macs - static))]
    assert fits(gated(scaled(PROGRAM.spec, share - 0.02)), TARGET, limit)
    assert not fits(gated(scaled(PROGRAM.spec, share + 0.08)), TARGET, limit)


def test_what_nothing_fits_into_is_refused_with_the_least() -> None:
    floor = bound_bytes(gated(scaled(PROGRAM.spec, 0.0)), TARGET)
    assert floor is not None
    assert static_for(PROGRAM.spec, TARGET, floor) < 0.5
    with pytest.raises(BudgetError, match=f"need {floor} bytes"):
        static_for(PROGRAM.spec, TARGET, floor - 1)


def test_a_runtime_without_a_bound_is_refused() -> None:
    with pytest.raises(BudgetError, match="has no memory bound"):
        static_for(PROGRAM.spec, load_target("x86-64-openvino"), 10**9)
