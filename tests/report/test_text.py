from __future__ import annotations

import dataclasses

import pytest

from edgevit.report import text
from edgevit.schema.manifest import AccuracyRow
from edgevit.schema.target import load_target


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.size(None), "–"),
        (text.size(999), "999 B"),
        (text.size(5_421_000), "5.42 MB"),
        (text.size(47_900_000), "47.9 MB"),
        (text.size(1_234_000_000), "1.23 GB"),
        (text.count(1_080_000_000), "1.08 G"),
        (text.count(0), "0"),
        (text.count(295_000), "295 k"),
        (text.ms(None), "–"),
        (text.ms(0.0245), "24.5 µs"),
        (text.ms(9.876), "9.88 ms"),
        (text.ms(123.4), "123 ms"),
        (text.percent(0.7444), "74.4 %"),
        (text.percent(None), "–"),
        (text.points(-0.007), "-0.7 points"),
        (text.points(0.012), "+1.2 points"),
        (text.percentile(None), "too few runs"),
    ],
)
def test_numbers_are_shown_with_three_digits_and_their_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_fraction_is_never_shown_without_interval_and_n() -> None:
    row = AccuracyRow(model="bundle", metric="top1", value=0.744, low=0.716, high=0.77, images=1000)
    assert text.interval(row) == "74.4 % [71.6, 77.0], n = 1000"


def test_what_a_reason_refers_to_is_said_to_lie_elsewhere() -> None:
    ((_, reason),) = text.int8_choice(load_target("cortex-a72-tvm"))
    assert "see reports/reference/tvm-counts.md in edgevit's sources" in reason
    bare = dataclasses.replace(load_target("cortex-a72-tvm"), reasons={})
    assert text.int8_choice(bare) == []
