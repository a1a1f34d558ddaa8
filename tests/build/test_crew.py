"""Several runners of one build answer as one does, in order, and only where another one costs next to nothing."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edgevit.build import crew as crews
from edgevit.build.crew import answers, crew

IMAGES = np.arange(20, dtype=np.uint8)[:, None, None, None] + np.zeros((20, 2, 2, 3), np.uint8)


class Counted:
    """A runner that must not be called twice at once."""

    def __init__(self) -> None:
        self.lock, self.calls, self.closed = threading.Lock(), 0, False

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        assert self.lock.acquire(blocking=False) and not self.closed
        try:
            self.calls += 1
            return image.ravel()[:1] + effort, np.ones(1, np.uint8)
        finally:
            self.lock.release()

    def close(self) -> None:
        self.closed = True


def case(*, native: bool = True, threads: int = 1, elsewhere: bool = False) -> Any:
    made: list[Counted] = []

    def load() -> Counted:
        made.append(Counted())
        return made[-1]

    spec = SimpleNamespace(adaptive=False)
    return SimpleNamespace(
        made=made,
        load=load,
        elsewhere=elsewhere,
        runtime=SimpleNamespace(NATIVE=native),
        target=SimpleNamespace(threads=threads),
        program=SimpleNamespace(spec=spec),
    )


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_answers_come_in_order_whatever_the_number_of_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "threads_here", lambda: cores)
    asked, own = case(), cast(Any, Counted())
    with crew(asked, own) as runners:
        told = list(answers(asked, runners, IMAGES, 3.0))
        assert len(runners) == cores and not any(one.closed for one in asked.made)
    assert [logits.tolist() for logits, _ in told] == [[index + 3.0] for index in range(len(IMAGES))]
    assert own.calls + sum(one.calls for one in asked.made) == len(IMAGES)
    assert not own.closed and all(one.closed for one in asked.made) and len(asked.made) == cores - 1


@pytest.mark.parametrize("costly", [{"native": False}, {"threads": 2}, {"elsewhere": True}])
def test_what_costs_more_is_loaded_once(costly: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "threads_here", lambda: 4)
    asked, own = case(**costly), cast(Any, Counted())
    with crew(asked, own) as runners:
        assert runners == [own] and asked.made == []
