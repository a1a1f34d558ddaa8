from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.errors import BudgetError, ProgramError
from edgevit.program.original import uncompressed, weights_digest
from edgevit.program.program import Program, load_program, save_program
from edgevit.program.spec import MergeSpec
from edgevit.program.tokens import merge_faults, read_plan, tokens_before, with_merges, write_plan
from tests.tiny import tiny_program, tiny_spec


def test_a_plan_is_read_and_written() -> None:
    spec = tiny_spec(depth=3)
    points = read_plan(" 1:4, 2:3", spec)
    assert points == (MergeSpec(after="b00_mhsa", count=4), MergeSpec(after="b01_mhsa", count=3))
    merged = with_merges(spec, points)
    assert write_plan(merged) == "1:4,2:3"
    assert tokens_before(merged) == (17, 13, 13, 10, 10, 10, 10)
    assert merged.compressed and not uncompressed(merged).merges
    assert write_plan(with_merges(spec, [MergeSpec(after="b00_ffn", count=2)])) == "b00_ffn:2"


@pytest.mark.parametrize("text", ["", "4", "1:4;2:3", "1:-4", "a:4", "1:4,", "1:4.0", "\u0661:4"])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="BLOCK:COUNT"):
        read_plan(text, tiny_spec(depth=3))


@pytest.mark.parametrize("block", [0, 4])
def test_a_block_that_is_not_there_is_refused(block: int) -> None:
    with pytest.raises(BudgetError, match="has blocks 1 to 3"):
        read_plan(f"{block}:4", tiny_spec(depth=3))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("1:9", "9 tokens are merged after 'b00_mhsa', where there are 16; allowed: 1 to 8"),
        ("1:0", "allowed: 1 to 8"),
        ("1:8,2:5", "where there are 8; allowed: 1 to 4"),
        ("2:3,1:4", "in the order of the branches"),
        ("1:3,1:4", "in the order of the branches"),
        ("1:4,3:2", "after 'b02_mhsa', where nothing reads them any more"),
    ],
)
def test_a_plan_that_is_not_possible_is_refused(plan: str, said: str) -> None:
    spec = tiny_spec(depth=3)
    with pytest.raises(BudgetError, match=said):
        with_merges(spec, read_plan(plan, spec))


def test_two_patches_stay() -> None:
    spec = tiny_spec(depth=6)
    assert tokens_before(with_merges(spec, read_plan("1:8,2:4,3:2", spec)))[-1] == 3
    with pytest.raises(BudgetError, match="2 have to be left"):
        with_merges(spec, read_plan("1:8,2:4,3:2,4:1", spec))


def test_points_after_what_was_removed_count_only_if_attention_follows() -> None:
    gone = ("b01_mhsa", "b02_mhsa")
    assert not merge_faults(replace(tiny_spec(depth=3), merges=(MergeSpec(after="b00_ffn", count=2),)))
    assert merge_faults(replace(tiny_spec(depth=3, removed=gone), merges=(MergeSpec(after="b00_ffn", count=2),)))
    averaged = tiny_spec(depth=3, prefix=0, removed=gone)
    assert not merge_faults(replace(averaged, merges=(MergeSpec(after="b00_ffn", count=2),)))
    assert merge_faults(replace(averaged, merges=(MergeSpec(after="b02_ffn", count=2),)))


def test_a_program_with_an_impossible_plan_is_refused() -> None:
    program = tiny_program(depth=3)
    with pytest.raises(ProgramError, match="merged after 'nowhere', which is no branch"):
        Program(spec=replace(program.spec, merges=(MergeSpec(after="nowhere", count=2),)), weights=program.weights)


def test_a_folder_from_before_there_were_merges_is_read(tmp_path: Path) -> None:
    program = tiny_program(depth=3)
    save_program(program, tmp_path / "p")
    file = tmp_path / "p" / "program.json"
    document = json.loads(file.read_text())
    del document["spec"]["merges"]
    file.write_text(json.dumps(document))
    assert load_program(tmp_path / "p").spec == program.spec


def test_an_unknown_rule_in_a_folder_is_refused(tmp_path: Path) -> None:
    save_program(tiny_program(depth=3, tokens="1:4"), tmp_path / "p")
    file = tmp_path / "p" / "program.json"
    file.write_text(file.read_text().replace("bipartite", "tripartite"))
    with pytest.raises(ProgramError, match=r"rule.*tripartite"):
        load_program(tmp_path / "p")


def test_merges_change_no_weights() -> None:
    assert weights_digest(tiny_program(depth=3, tokens="1:4")) == weights_digest(tiny_program(depth=3))
