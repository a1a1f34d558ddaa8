"""The recorded instruction counts, and the targets that were chosen by them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.arm import DENSE, GATED, TARGETS, Row, int8_pays, render
from edgevit import serial
from edgevit.resources import shipped
from edgevit.targets import load_target

RECORDED = shipped("targets").parent / "reports/reference/arm.json"


def recorded() -> list[Row]:
    faults: list[str] = []
    rows = [serial.from_data(Row, row, faults) for row in json.loads(RECORDED.read_text())]
    assert not faults
    return [row for row in rows if row is not None]


@pytest.mark.parametrize("cpu", TARGETS)
def test_a_target_takes_int8_where_it_saves_instructions(cpu: str) -> None:
    target = load_target(TARGETS[cpu])
    assert target.int8 == int8_pays(recorded(), cpu)
    assert "reports/reference/arm.md" in target.reasons["int8"]


def test_what_is_recorded_is_what_is_shown() -> None:
    rows = recorded()
    assert render(rows) == RECORDED.with_suffix(".md").read_text()
    builds = ((DENSE, True), (DENSE, False), (GATED, True))
    assert {(row.model, row.int8, row.cpu) for row in rows} == {(*build, cpu) for build in builds for cpu in TARGETS}
    for row in rows:
        assert row.logit_error <= row.allowed
        assert row.model == DENSE or (row.all_skipped or 0) < 0.1 * row.all_open


def test_the_choice_follows_the_counts() -> None:
    float_row = next(row for row in recorded() if row.model == DENSE and not row.int8)
    rows = [float_row, replace(float_row, int8=True, all_open=0.74 * float_row.all_open)]
    assert int8_pays(rows, float_row.cpu)
    assert not int8_pays([rows[0], replace(rows[1], all_open=0.76 * float_row.all_open)], float_row.cpu)
