from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.report.svg import Scale, element, rect, round_step, text


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_a_step_is_round_and_cuts_a_length_into_a_handful_of_parts(length: float) -> None:
    step = round_step(length)
    assert 2 <= length / step <= 7
    assert f"{step:.6e}"[0] in "125"
    assert float(f"{step:.0e}") == pytest.approx(step)


@given(st.floats(0, 1e9), st.floats(1e-3, 1e9))
def test_ticks_lie_inside_and_map_into_the_range(low: float, length: float) -> None:
    scale = Scale(low=low, top=low + length, begin=300, end=10)
    assert scale(low) == pytest.approx(300) and scale(low + length) == pytest.approx(10)
    assert all(9 <= scale(tick) <= 301 for tick in scale.ticks)


def test_names_values_and_text_are_escaped() -> None:
    drawn = element("rect", class_='a"b', stroke_width=1.25)
    assert drawn == '<rect class="a&quot;b" stroke-width="1.2"/>'
    assert "&lt;b&gt;" in text(0, 0, "<b>") and "&amp;" in rect(0, 0, 1, 1, "x", title="a&b")


def test_a_bar_of_nothing_is_not_drawn() -> None:
    assert rect(0, 0, 0, 10, "x") == "" and rect(0, 0, 10, -1, "x") == ""
