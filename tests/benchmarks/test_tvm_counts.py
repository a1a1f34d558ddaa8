"""The targets' types against what was counted, and the reasons that they give against the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tvm_counts import CASES, NAME, KernelCount, choices, read, render
from edgevit.schema.target import load_target

REFERENCE = Path(__file__).resolve().parents[2] / "reports" / "reference"


ROWS = read(REFERENCE / f"{NAME}.json")


def test_every_case_is_in_the_report_as_its_target_is_now() -> None:
    assert [(row.target, row.weight_bits) for row in ROWS] == [(name, bits) for name, kinds in CASES for bits in kinds]
    for row in ROWS:
        target = load_target(row.target)
        assert row.taken == (row.weight_bits == (target.weight_bits if target.int8 else None))
    assert (REFERENCE / f"{NAME}.md").read_text(encoding="utf-8") == render(ROWS)


@pytest.mark.parametrize("name", [name for name, _ in CASES])
def test_targets_take_the_type_that_the_counts_speak_for(name: str) -> None:
    target = load_target(name)
    assert choices(ROWS)[name] == (target.weight_bits if target.int8 else None)


@pytest.mark.parametrize("name", ["x86-64-v2-tvm", "x86-64-v3-tvm", "cortex-a53-tvm", "cortex-a72-tvm"])
def test_reasons_give_the_figures_of_the_report(name: str) -> None:
    target = load_target(name)
    own = {row.weight_bits: row for row in ROWS if row.target == name}
    int8, plain = own[target.weight_bits], own[None]
    told = target.reasons["int8"]
    assert (
        f"executes {int8.instructions / 1e6:.0f} million instructions, in float {plain.instructions / 1e6:.0f}" in told
    )
    assert f"at least {int8.lower_cycles / plain.lower_cycles:.2f} of float's cycles" in told
    assert f"{int8.waiting_cycles / plain.waiting_cycles:.2f} where results are waited for" in told
    if 8 in own and target.weight_bits == 7:
        wide = f"{own[8].instructions / 1e6:.0f} million instructions instead of {int8.instructions / 1e6:.0f}"
        assert wide in target.reasons["weight_bits"]


@pytest.mark.parametrize(("name", "most"), [("cortex-a76-tvm", 110), ("armv8.6-i8mm-tvm", 85), ("cortex-a72-tvm", 320)])
def test_int8_on_arm_executes_no_more_than_that(name: str, most: float) -> None:
    (own,) = (row for row in ROWS if row.target == name and row.weight_bits)
    assert own.instructions <= most * 1e6
    assert name == "cortex-a72-tvm" or own.lower_cycles <= 75e6


def test_int8_is_no_choice_where_it_takes_longer() -> None:
    kernel = KernelCount(name="fc1", calls=12, instructions=10, lower_cycles=5.0, waiting_cycles=8.0)
    plain = replace(ROWS[0], target="x", weight_bits=None, kernels=(kernel,))
    for lower, waiting, chosen in ((4.0, 8.0, 8), (6.0, 7.0, None), (4.0, 9.0, None)):
        other = replace(kernel, lower_cycles=lower, waiting_cycles=waiting)
        assert choices([replace(plain, weight_bits=8, kernels=(other,)), plain]) == {"x": chosen}
