"""The recorded counts and estimates, and the targets that were chosen by them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.arm import BOARDS, BUILDS, DENSE, GATED, MERGED, RUNTIMES, Row, int8_pays, render
from benchmarks.estimate_error import ERRORS, read_errors
from edgevit.devices.qemu.estimate import CHECKED
from edgevit.schema.target import load_target
from edgevit.util import strict_json
from edgevit.util.resources import shipped

RECORDED = shipped("targets").parent / "reports/reference/arm.json"


def recorded() -> list[Row]:
    faults: list[str] = []
    rows = [strict_json.from_data(Row, row, faults) for row in json.loads(RECORDED.read_text())]
    assert not faults
    return [row for row in rows if row is not None]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("cpu", BOARDS)
def test_a_target_takes_int8_where_it_takes_no_more_cycles(cpu: str, runtime: str) -> None:
    target = load_target(f"{BOARDS[cpu]}-{runtime}")
    assert target.int8 == int8_pays(recorded(), cpu, runtime)
    assert "reports/reference/arm.md" in target.reasons["int8"]


def test_what_is_recorded_is_what_is_shown() -> None:
    rows = recorded()
    assert render(rows, read_errors(RECORDED.with_name(ERRORS))) == RECORDED.with_suffix(".md").read_text()
    assert [(r.model, r.backend, r.int8, r.cpu) for r in rows] == [(*build, cpu) for build in BUILDS for cpu in BOARDS]
    for row in rows:
        assert row.logit_error <= row.allowed
        assert (row.all_skipped or 0) < {DENSE: 0.1, MERGED: 0.7, GATED: 0.97}[row.model] * row.all_open
        assert row.model == DENSE or row.all_skipped
        assert row.heap and row.estimate
        for path in row.estimate.paths:
            assert path.lower_cycles <= path.hits_cycles < path.upper_cycles


def test_the_range_holds_what_a_core_at_hand_takes() -> None:
    """On x86-64, where it can be checked: the range that would be told, and the least of many runs."""
    errors = read_errors(RECORDED.with_name(ERRORS))
    assert len(errors) >= 2
    for checked in errors:
        assert checked.lower_cycles < checked.least_cycles < checked.upper_cycles
        assert checked.covered > 0.95 and checked.runs >= 30
    over = sorted(checked.least_cycles / checked.lower_cycles for checked in errors)
    assert f"native runs took {over[0]:.2f} to {over[-1]:.2f}" == CHECKED


def test_the_choice_follows_the_counts() -> None:
    plain = next(row for row in recorded() if row.model == DENSE and not row.int8)
    place = (plain.cpu, plain.backend)
    assert plain.estimate
    path = plain.estimate.paths[0]

    def int8(lower: float, upper: float, instructions: float = 1.0) -> Row:
        assert plain.estimate
        own = replace(path, lower_cycles=lower * path.lower_cycles, upper_cycles=upper * path.upper_cycles)
        estimate = replace(plain.estimate, paths=(own,))
        return replace(plain, int8=True, all_open=instructions * plain.all_open, estimate=estimate)

    assert int8_pays([plain, int8(0.99, 0.99, instructions=1.1)], *place)
    assert not int8_pays([plain, int8(1.01, 0.5, instructions=0.5)], *place)
    assert not int8_pays([plain, int8(0.5, 1.01, instructions=0.5)], *place)
