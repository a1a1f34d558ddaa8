"""What the emulated device runs: golden inputs, and the search for gate patterns that no run had yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.devices.qemu.guest_program import BEGIN, END, FIRST, _golden, between, counting


@pytest.mark.parametrize("tokens", [(), (np.array([9, 4], np.int32),)], ids=["fixed", "following the image"])
def test_a_golden_input_runs_whether_or_not_tokens_are_told(tmp_path: Path, tokens: tuple[np.ndarray, ...]) -> None:
    np.save(tmp_path / "image.npy", np.zeros((1, 2, 2, 3), np.uint8))
    case = {"path": "real", "image": "image.npy", "effort": 0.0}
    answer = (np.array([[1.0, np.nan]], np.float32), np.array([1, 0], np.uint8), *tokens)
    told = _golden(tmp_path, case, lambda image, effort: answer)
    assert told["path"] == "real" and told["gates"] == [1, 0]
    assert told["logits"] == [1.0, pytest.approx(1e30)]


@pytest.mark.parametrize("told", [(), (np.array([9, 4], np.int32),)], ids=["fixed", "following the image"])
def test_tokens_of_every_run_are_kept_beside_its_gates(told: tuple[np.ndarray, ...]) -> None:
    """Equal gates with other numbers of tokens execute other products: only the tokens tell why."""
    marks: list[int] = []
    answer = (np.zeros((1, 2), np.float32), np.array([1, 0], np.uint8), *told)
    run, tokens = counting(lambda image, effort: answer, np.zeros((2, 1)), lambda _, what: marks.append(what))
    assert run(0, 0.0) == run(1, 1.0) == [1, 0]
    assert tokens == [[9, 4] if told else []] * 2
    assert marks == [BEGIN, END] * 2


def test_efforts_between_neighbours_that_differ_most() -> None:
    asked: list[tuple[int, float]] = []

    def run(image: int, effort: float) -> list[int]:
        """Gate k of image i opens at effort k - 2 + i / 8."""
        asked.append((image, effort))
        return [int(effort > gate - 2 + image / 8) for gate in range(5)]

    found = between(run, 2, 40)
    assert {sum(gates) for gates in found} == set(range(6))
    assert [asked[0], asked[1]] == [(0, FIRST[0]), (0, FIRST[1])]
    per_image = [sum(image == i for image, _ in asked) for i in (0, 1)]
    assert sum(per_image) == len(found) and min(per_image) >= 6, "an image is left when its neighbours differ by one"
    assert len(set(asked)) == len(asked), "nothing is run twice"


def test_as_many_as_asked_for_at_most() -> None:
    assert between(lambda *_: [0], 3, 0) == []
    assert len(between(lambda _, effort: [int(effort > 0)] * 4, 3, 5)) == 5


def test_gates_that_open_at_once_end_the_search() -> None:
    assert len(between(lambda _, effort: [int(effort > 0.3)] * 4, 1, 1000)) < 20
    assert len(between(lambda *_: [1, 1], 3, 1000)) == 3 * len(FIRST)
