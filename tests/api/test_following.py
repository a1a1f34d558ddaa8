"""Numbers of tokens that follow the image, where they save no time: not chosen, avoided by `host`, and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgevit import pipeline
from edgevit.api import job
from edgevit.api.build import Job, predict_build, run_build
from edgevit.compress.budgets import Budgets
from edgevit.errors import BudgetError
from edgevit.schema.target import Target, load_target
from tests.tiny import tiny_images, tiny_program

FOLLOWS = "1:0-4@0.8"


class Reached(Exception):
    """The search is reached."""


@pytest.mark.parametrize(("target", "per_image"), [("x86-64-openvino", False), ("x86-64-onnxruntime", None)])
def test_a_search_for_tokens_to_merge_knows_what_saves_time(
    target: str, per_image: bool | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Budgets] = []

    def compress(program: Any, images: Any, budgets: Budgets, **rest: Any) -> None:
        asked.append(budgets)
        raise Reached

    monkeypatch.setattr(pipeline, "compress", compress)
    program = tiny_program(depth=3)
    with caplog.at_level("INFO", logger="edgevit"), pytest.raises(Reached):
        run_build(Job(model=program, target=target, calibration=tiny_images(program.spec, 24), merge=0.8))
    assert asked == [Budgets(merged=0.8, per_image=per_image)]
    assert ("every image is to merge as many" in caplog.text) == (per_image is False)


@pytest.mark.parametrize(
    ("plan", "told"),
    [("1:0-4@1.25", "as calibrated none merge"), ("1:0-4@-1.5", "as calibrated all that may merge"), ("1:0-4@1", "")],
)
def test_a_threshold_that_no_cosine_has_is_told(plan: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    predict_build(Job(model=tiny_program(depth=3), target="x86-64-onnxruntime", tokens=f"{plan}, 2:2"))
    assert (f"tokens merge at {plan}, and no cosine is beyond -1 to 1" in caplog.text) == bool(told)
    assert told in caplog.text


def test_a_plan_in_place_of_another_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="edgevit"):
        predict_build(Job(model=tiny_program(depth=3, tokens="1:4"), target="x86-64-onnxruntime", tokens="2:3"))
    assert "tokens of tiny merge at 2:3 instead of 1:4; weights that were fitted" in caplog.text


@pytest.mark.parametrize("share", [{"merge": 0.8}, {"prune": 0.2}, {"gate": 0.8}, {"merge": 0.001}])
@pytest.mark.parametrize("begin", [predict_build, run_build])
def test_a_budget_that_cannot_be_met_is_refused_before_images_are_read(
    begin: Callable[[Job], object], share: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.api.build.images_of", lambda *_: pytest.fail("images are read"))
    program = tiny_program(depth=3, tokens="" if share == {"merge": 0.001} else "1:4")
    with pytest.raises(BudgetError, match="cannot be reached|merges tokens already"):
        begin(Job(model=program, target="x86-64-onnxruntime", **share))  # type: ignore[arg-type]


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_saves_no_time_is_told_before_it_is_built(by_hand: bool, caplog: pytest.LogCaptureFixture) -> None:
    program = tiny_program(depth=3, tokens="" if by_hand else FOLLOWS)
    for target, told in (("x86-64-openvino", True), ("x86-64-onnxruntime", False)):
        caplog.clear()
        predict_build(Job(model=program, target=target, tokens=FOLLOWS if by_hand else None))
        assert (f"in an image, which saves no time with {target}" in caplog.text) == told


@pytest.mark.parametrize(("tokens", "expected"), [(FOLLOWS, "x86-64-onnxruntime"), ("1:4", "x86-64-openvino")])
def test_host_is_another_target_where_tokens_follow_the_image(
    tokens: str, expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def host_target(*, follows: bool) -> tuple[Target, str]:
        return load_target("x86-64-onnxruntime" if follows else "x86-64-openvino"), "this machine"

    monkeypatch.setattr(job, "host_target", host_target)
    assert predict_build(Job(model=tiny_program(depth=3), target="host", tokens=tokens)).target == expected
    assert "saves no time" not in caplog.text
