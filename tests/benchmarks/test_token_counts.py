"""Instructions of merged tokens: what the report says, and which Programs can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.token_counts import NAME, Row, main, table
from edgevit.program.program import save_program
from edgevit.util.strict_json import read_json
from tests.tiny import tiny_program

REFERENCE = Path(__file__).resolve().parents[2] / "reports" / "reference"
ROWS = [Row(**row) for row in read_json(REFERENCE / f"{NAME}.json")["rows"]]


def test_the_report_is_that_of_its_rows_and_begins_with_the_dense_model() -> None:
    assert (REFERENCE / f"{NAME}.md").read_text(encoding="utf-8") == table(ROWS)
    assert not ROWS[0].plan and not ROWS[0].merging and all(row.plan and row.merging for row in ROWS[1:])


def test_merging_saves_on_a_cortex_a76_about_what_its_macs_say() -> None:
    dense, *merged = (row for row in ROWS if row.target == "cortex-a76-tvm")
    for row in merged:
        macs, instructions = row.macs / dense.macs, row.instructions / dense.instructions
        assert abs(instructions - macs) < 0.03
        assert instructions <= 0.73 or macs > 0.7


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        (("1:4", "1:4"), "p0 merges tokens at 1:4; the first Program has to be one that merges none"),
        (("", "1:0-4@0.5"), "p1 merges another number of pairs for every image; give fixed plans"),
    ],
)
def test_what_cannot_be_counted_is_refused(plans: tuple[str, str], said: str, tmp_path: Path) -> None:
    for index, plan in enumerate(plans):
        save_program(tiny_program(depth=3, tokens=plan), tmp_path / f"p{index}")
    result = CliRunner().invoke(main, [str(tmp_path / "p0"), str(tmp_path / "p1"), "-o", str(tmp_path)])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
