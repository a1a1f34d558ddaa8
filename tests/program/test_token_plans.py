from __future__ import annotations

from typing import Any

import pytest

from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.spec import ProgramSpec
from edgevit.program.token_plans import GIVEN_AWAY, least_share, plan_at, predicted, spread, starts
from edgevit.program.tokens import TILE, merge_faults, most_left, write_plan
from tests.tiny import tiny_spec

DEEP: dict[str, Any] = {"depth": 12, "dim": 64, "image": (64, 64), "patch": 8}


def cost(plan: ProgramSpec) -> float:
    return total_macs(plan) / total_macs(tiny_spec(**DEEP))


def test_spread_points_have_equal_distances() -> None:
    assert [spread(12, n) for n in (1, 2, 3, 4)] == [(5,), (3, 7), (2, 5, 8), (1, 3, 6, 8)]


@pytest.mark.parametrize("share", [0.9, 0.7, 0.6, 0.5])
def test_every_start_meets_the_budget_and_wastes_little(share: float) -> None:
    spec = tiny_spec(**DEEP)
    plans = starts(spec, int(share * total_macs(spec)))
    assert plans and len({len(plan.merges) for plan in plans}) == len(plans)
    for plan in plans:
        assert not merge_faults(plan)
        assert share - 0.02 < cost(plan) <= share
        counts = [point.count for point in plan.merges]
        equal = all(c == counts[-1] for c in counts[1:]) and counts[0] <= counts[-1]
        assert equal or leaves_whole_tiles(plan)


def leaves_whole_tiles(plan: ProgramSpec) -> bool:
    return all((plan.stem.prefix + left) % TILE == 0 for left in most_left(plan))


@pytest.mark.parametrize(
    ("blocks", "share", "expected"),
    [
        ((4, 6), 0.7, "5:53,7:64"),  # 57 each would leave 140 and 83 rows
        ((3, 6, 8), 0.7, "4:53,7:32,9:32"),
        ((5,), 0.8, "6:75"),  # the next whole tile would merge far more
    ],
)
def test_whole_tiles_of_rows_are_left_where_that_gives_little_away(
    blocks: tuple[int, ...], share: float, expected: str
) -> None:
    spec = tiny_spec(depth=12, dim=192, heads=3, hidden=768, image=(224, 224), patch=16)
    plan = plan_at(spec, blocks, int(share * total_macs(spec)))
    assert plan is not None and write_plan(plan) == expected
    assert leaves_whole_tiles(plan) == ("," in expected)
    assert share - GIVEN_AWAY <= total_macs(plan) / total_macs(spec) <= share


def test_the_first_plan_that_fits_merges_no_pair_too_many() -> None:
    spec = tiny_spec(**DEEP)
    budget = int(0.7 * total_macs(spec))
    plan = plan_at(spec, (3, 7), budget)
    assert plan is not None and write_plan(plan).startswith("4:")
    assert plan_at(spec, (11,), budget) is None  # nothing reads the tokens after it
    assert plan_at(spec, (8,), int(0.5 * total_macs(spec))) is None


def test_what_cannot_be_reached_says_what_can() -> None:
    spec = tiny_spec(depth=2)
    least = least_share(spec)
    assert 0.5 < least < 1 and starts(spec, int((least + 0.01) * total_macs(spec)))
    with pytest.raises(BudgetError, match=f"leaves {least:.0%} of its MACs at least, and 50% were asked for"):
        predicted(spec, total_macs(spec) // 2)
    assert least_share(tiny_spec(removed=("b00_mhsa", "b01_mhsa"))) == 1.0
    assert least_share(tiny_spec(**DEEP)) == 0.5


def test_a_prediction_has_three_points() -> None:
    spec = tiny_spec(**DEEP)
    assert len(predicted(spec, int(0.7 * total_macs(spec))).merges) == 3
