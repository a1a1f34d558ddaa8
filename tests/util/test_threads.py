"""Work in several threads: the order, the errors and the results of one."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from edgevit.util import threads
from edgevit.util.threads import in_order, one_blas_thread, threads_here


@pytest.mark.parametrize("count", [1, 2, 4, None])
def test_results_come_in_the_order_of_the_items(count: int | None) -> None:
    assert list(in_order(lambda x: x * x, range(50), count)) == [x * x for x in range(50)]
    assert list(in_order(lambda x: x, [], count)) == []


def test_items_are_worked_on_at_once_and_not_far_ahead() -> None:
    together, begun = threading.Barrier(2, timeout=20), []

    def work(item: int) -> int:
        begun.append(item)
        if item < 2:
            together.wait()  # ends only when another item is worked on
        return item

    results = in_order(work, range(100), 2)
    assert next(results) == 0
    assert len(begun) <= 3
    assert list(results) == list(range(1, 100))


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_comes_in_its_turn_and_ends_the_rest(count: int) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    results, taken = in_order(work, range(1000), count), []
    with pytest.raises(ValueError, match="item 3"):
        for result in results:
            taken.append(result)
    assert taken == [0, 1, 2]


def test_there_are_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 2), (64, threads.MOST_THREADS)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert threads_here() == expected


def test_numpy_multiplies_in_one_thread_inside_and_as_before_after() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    found = threads._openblas()
    assert found, "NumPy's wheels bring OpenBLAS; is its name another one now?"
    for limit, _ in found:
        limit(3)
    with pytest.raises(ValueError, match="end"), one_blas_thread():
        assert [now() for _, now in found] == [1] * len(found)
        raise ValueError("end")
    assert all(now() != 1 for _, now in found)
