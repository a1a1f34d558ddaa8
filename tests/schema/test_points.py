from __future__ import annotations

import pytest

from edgevit.errors import OperatingPointError
from edgevit.schema.points import OperatingPoint, PointName, effort_of, effort_text

NAMED: tuple[tuple[float, PointName | None], ...] = ((-2.0, "fast"), (-1.0, None), (0.0, "balanced"))
POINTS = tuple(
    OperatingPoint(effort=effort, name=name, macs=1.0, worst_macs=1, branches=1.0, images=1) for effort, name in NAMED
)


@pytest.mark.parametrize(
    ("asked", "effort"), [("fast", -2.0), ("balanced", 0.0), ("-0.5", -0.5), (1, 1.0), ("inf", 1e999)]
)
def test_an_effort_is_a_name_or_a_number(asked: str | float, effort: float) -> None:
    assert effort_of(asked, POINTS, "tiny") == effort


@pytest.mark.parametrize(
    ("asked", "points", "said"),
    [
        ("full", POINTS, "tiny has no operating point 'full': it has fast, balanced; or give a number"),
        ("None", POINTS, "no operating point 'None'"),
        ("fast", (), "it has none, because it runs the same for every image; omit the effort"),
        ("nan", POINTS, "must be a number or the name of an operating point, got 'nan'"),
    ],
)
def test_what_does_not_exist_is_one_error(asked: str, points: tuple[OperatingPoint, ...], said: str) -> None:
    with pytest.raises(OperatingPointError, match=said):
        effort_of(asked, points, "tiny")


@pytest.mark.parametrize(
    ("effort", "shown"),
    [(0.0, "0"), (-8.0, "-8"), (2.45, "2.45"), (1e30, "infinity"), (-1e30, "-infinity"), (1e9, "infinity")],
)
def test_an_effort_beyond_all_thresholds_is_shown_as_infinity_and_read_back(effort: float, shown: str) -> None:
    assert effort_text(effort) == shown
    assert effort_of(shown, (), "tiny") == (effort if abs(effort) < 1e9 else effort * 1e300)
