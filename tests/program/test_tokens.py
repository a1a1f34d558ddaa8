from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit.errors import BudgetError, ProgramError
from edgevit.program.original import uncompressed, weights_digest
from edgevit.program.program import Program, load_program, save_program
from edgevit.program.spec import MergeSpec
from edgevit.program.tokens import (
    MERGE_STEP,
    MOST_COUNTS,
    TILE,
    cheapest_left,
    fewest_before,
    fewest_left,
    half_of,
    merge_faults,
    merge_step,
    most_left,
    most_pairs,
    pair_counts,
    patches_before,
    read_plan,
    tokens_before,
    with_merges,
    write_plan,
)
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


def test_a_plan_that_follows_the_image_is_read_and_written() -> None:
    spec = tiny_spec(depth=4)
    points = read_plan("1:2-6@0.80, 2:3 ,3:0-3@-.25", spec)
    assert points == (
        MergeSpec(after="b00_mhsa", count=6, least=2, threshold=0.8, step=2, whole=True),
        MergeSpec(after="b01_mhsa", count=3),
        MergeSpec(after="b02_mhsa", count=3, threshold=-0.25, step=2, whole=True),
    )
    merged = with_merges(spec, points)
    assert merged.adaptive and merged.steered and not merged.gated
    assert not with_merges(spec, points[1:2]).adaptive and not spec.steered and tiny_spec(gated=True).steered
    assert write_plan(merged) == "1:2-6@0.8,2:3,3:0-3@-0.25"
    assert read_plan(write_plan(merged), spec) == points
    small = with_merges(spec, [MergeSpec(after="b00_mhsa", count=2, threshold=1e-7, step=2, whole=True)])
    assert read_plan(write_plan(small), spec) == small.merges
    # Memory is for the image that keeps most; of every image less is left than came.
    assert most_left(merged) == (14, 11, 11) and fewest_left(merged) == (11, 8, 5)
    assert tokens_before(merged) == (17, 15, 15, 12, 12, 12, 12, 12, 12)
    assert tokens_before(merged, (12, 9, 7)) == (17, 13, 13, 10, 10, 8, 8, 8, 8)
    assert patches_before(merged) == (16, 14, 11) and patches_before(merged, (12, 9, 7)) == (16, 12, 9)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("1:0-9@0.5", "9 tokens are merged after 'b00_mhsa', where there are 16 at most; allowed: 1 to 8"),
        ("1:0-8@0.5,2:0-9@0.5", "where there are 16 at most; allowed: 1 to 8"),
        ("1:2-8@0.5,2:0-8@0.5", "where there are 14 at most; allowed: 1 to 7"),
        ("1:0-8@0.5,2:5-8@0.5", "5 tokens are merged .* there are 9 at least; allowed: 1 to 4"),
        ("1:0-8@0.5,2:5", "where there are 9 at least; allowed: 1 to 4"),
        ("1:2-3@0.5,2:3-4@0.5", "4 tokens at most are merged .* no multiple of 2 of 15 rows; allowed: 5 or more"),
        ("1:4-4@0.5", "at least 4 tokens are merged after 'b00_mhsa'; allowed: 0 to 3"),
        ("1:0-4@8.5", r"the threshold after 'b00_mhsa' is 8.5, allowed for .*-8 to 8"),
        ("4:0-4@0.5", "nothing reads them any more"),
    ],
)
def test_a_plan_that_follows_the_image_and_is_not_possible_is_refused(plan: str, said: str) -> None:
    spec = tiny_spec(depth=4)
    with pytest.raises(BudgetError, match=said):
        with_merges(spec, read_plan(plan, spec))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("step", [8, 24])
@pytest.mark.parametrize("plan", ["1:0-98@0.5,3:0-98@0.5,5:0-98@0.5", "1:5-90@0.5,2:11-60@0.5,4:13", "2:40,3:0-70@0.5"])
def test_no_image_has_fewer_than_the_fewest(plan: str, step: int, whole: bool) -> None:
    spec = tiny_spec(depth=7, image=(112, 112))
    spec = with_merges(spec, [replace(point, step=step, whole=whole) for point in read_plan(plan, spec)])
    there, found, cheapest = {spec.patches}, [], spec.patches
    for point, said in zip(spec.merges, cheapest_left(spec), strict=True):
        # An image has no more pairs than tokens of its first set.
        allowed = {
            left: [n for n in pair_counts(point, spec.stem.prefix + left) if n <= (left + 1) // 2] for left in there
        }
        assert all(most_pairs(spec, point, left) == max(counts) for left, counts in allowed.items())
        cheapest -= max(allowed[cheapest])
        assert cheapest == said and 0 <= min(there) - fewest_before(spec, point) < step
        there = {left - count for left, counts in allowed.items() for count in counts}
        found.append(min(there))
    assert all(0 <= one - bound < step for one, bound in zip(found, fewest_left(spec), strict=True))


def test_pairs_leave_whole_tiles_of_rows() -> None:
    def counts(rows: int, least: int, count: int, step: int = 16) -> tuple[int, ...]:
        point = MergeSpec(after="b00_mhsa", count=count, least=least, threshold=0.5, step=step, whole=True)
        return pair_counts(point, rows)

    assert counts(197, 0, 98) == (0, 5, 21, 37, 53, 69, 85) and counts(192, 0, 96) == (0, 16, 32, 48, 64, 80, 96)
    assert counts(197, 5, 98) == (5, 21, 37, 53, 69, 85) and counts(197, 0, 4) == (0,)
    for rows in range(3, 200):
        for least, count, step in ((0, 40, 16), (7, 40, 8), (0, 98, 24), (16, 33, 16)):
            numbers = counts(rows, least, count, step)
            assert numbers == tuple(sorted(set(numbers))) and numbers[0] == least and numbers[-1] <= count
            assert set(numbers[1:]) == {n for n in range(least + 1, count + 1) if (rows - n) % step == 0}


def test_pairs_of_earlier_programs_come_in_steps() -> None:
    def counts(least: int, count: int) -> tuple[int, ...]:
        return pair_counts(MergeSpec(after="b00_mhsa", count=count, least=least, threshold=0.5), 197)

    assert MERGE_STEP == 8
    assert counts(0, 24) == (0, 8, 16, 24) and counts(8, 17) == (8, 16, 17)
    assert counts(3, 20) == (3, 8, 16, 20) and counts(0, 7) == (0, 7)
    assert pair_counts(MergeSpec(after="b00_mhsa", count=20), 197) == (20,)
    assert pair_counts(MergeSpec(after="b00_mhsa", count=50, threshold=0.5, step=24), 197) == (0, 24, 48, 50)


@pytest.mark.parametrize(
    ("patches", "step"),
    [(4, 2), (16, 2), (49, 4), (64, 8), (127, 8), (128, 16), (196, 16), (384, 16), (400, 32), (576, 32), (1024, 48)],
)
def test_tiles_grow_with_the_patches(patches: int, step: int) -> None:
    assert merge_step(patches) == step and (patches < 128 or step % TILE == 0)
    half = MergeSpec(after="b00_mhsa", count=half_of(patches), threshold=0.5, step=step, whole=True)
    for rows in range(patches, patches + 3):
        assert 2 <= len(pair_counts(half, rows)) <= MOST_COUNTS


@pytest.mark.parametrize(("step", "said"), [(-8, "-8"), (0, "0"), (7, "7"), (17, "17"), (10**30, "1e.30")])
def test_a_step_that_no_image_could_take_is_refused(step: int, said: str) -> None:
    with pytest.raises(BudgetError, match=f"pairs after 'b00_mhsa' come in steps of {said}; allowed: 8 to 16"):
        with_merges(tiny_spec(depth=3), [MergeSpec(after="b00_mhsa", count=4, threshold=0.5, step=step)])


@pytest.mark.parametrize(("step", "said"), [(-8, "-8"), (0, "0"), (17, "17")])
def test_a_tile_that_no_image_could_leave_is_refused(step: int, said: str) -> None:
    point = MergeSpec(after="b00_mhsa", count=8, threshold=0.5, step=step, whole=True)
    with pytest.raises(BudgetError, match=f"pairs after 'b00_mhsa' come in steps of {said}; allowed: 1 to 16"):
        with_merges(tiny_spec(depth=3), [point])


def test_fewest_pairs_need_a_threshold() -> None:
    with pytest.raises(BudgetError, match="least is 2 after 'b00_mhsa', which needs a threshold"):
        with_merges(tiny_spec(depth=3), [MergeSpec(after="b00_mhsa", count=4, least=2)])


@pytest.mark.parametrize(
    "text",
    [
        *("", "4", "1:4;2:3", "1:-4", "a:4", "1:4,", "1:4.0", "\u0661:4", "1:0-4", "1:4@0.5", "1:0-4@", "1:0-4@a"),
        *("1:0-4@0.5@0.6", "1:0-4@nan", "1:0-4@inf", "1:0-4@1e999"),
    ],
)
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
    with pytest.raises(BudgetError, match=said) as refused:
        with_merges(spec, read_plan(plan, spec))
    assert "cannot be merged so (block 1 is b00_mhsa):" in str(refused.value)


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


def test_thresholds_are_kept_in_a_folder_and_missing_ones_are_none(tmp_path: Path) -> None:
    program = tiny_program(depth=3, tokens="1:1-4@0.3,2:2")
    save_program(program, tmp_path / "p")
    assert load_program(tmp_path / "p").spec == program.spec
    file = tmp_path / "p" / "program.json"
    document = json.loads(file.read_text())
    for point in document["spec"]["merges"]:
        del point["least"], point["threshold"], point["step"], point["whole"]
    file.write_text(json.dumps(document))
    points = load_program(tmp_path / "p").spec.merges
    assert [(p.count, p.least, p.threshold, p.step, p.whole) for p in points] == [
        (4, 0, None, 8, False),
        (2, 0, None, 8, False),
    ]


def test_a_folder_from_before_whole_tiles_keeps_its_numbers(tmp_path: Path) -> None:
    program = tiny_program(depth=3, image=(112, 112), tokens="1:0-98@0.3,2:3-40@0.2")
    save_program(program, tmp_path / "p")
    file = tmp_path / "p" / "program.json"
    document = json.loads(file.read_text())
    for point in document["spec"]["merges"]:
        assert point.pop("whole") and point["step"] == 16
        point["step"] = 8
    file.write_text(json.dumps(document))
    first, second = load_program(tmp_path / "p").spec.merges
    assert pair_counts(first, 197) == (*range(0, 97, 8), 98) == pair_counts(first, 192)
    assert pair_counts(second, 109) == (3, 8, 16, 24, 32, 40)


def test_an_unknown_rule_in_a_folder_is_refused(tmp_path: Path) -> None:
    save_program(tiny_program(depth=3, tokens="1:4"), tmp_path / "p")
    file = tmp_path / "p" / "program.json"
    file.write_text(file.read_text().replace("bipartite", "tripartite"))
    with pytest.raises(ProgramError, match=r"rule.*tripartite"):
        load_program(tmp_path / "p")


def test_merges_change_no_weights() -> None:
    assert weights_digest(tiny_program(depth=3, tokens="1:4")) == weights_digest(tiny_program(depth=3))
