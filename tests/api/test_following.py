"""Numbers of tokens that follow the image, where they save no time: not chosen, avoided by `host`, and told."""

from __future__ import annotations

from typing import Any

import pytest

from edgevit import pipeline
from edgevit.api import job
from edgevit.api.build import Job, predict_build, run_build
from edgevit.compress.budgets import Budgets
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
