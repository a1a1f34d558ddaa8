"""Answer many images at once, by several runners of one build where that costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np

from edgevit.backends import Runner
from edgevit.build.case import Case
from edgevit.util.threads import in_order, threads_here


@contextmanager
def crew(case: Case, runner: Runner) -> Iterator[list[Runner]]:
    """Give the runner, and others of the same build that run beside it: one per core.

    Only machine code for one thread is loaded again: its weights are pages of a file that all runners share, while
    other runtimes would compile the model once more, and hold it once more.
    """
    alone = case.elsewhere or not case.runtime.NATIVE or case.target.threads > 1
    more = [] if alone else [case.load() for _ in range(threads_here() - 1)]
    try:
        yield [runner, *more]
    finally:
        for one in more:
            one.close()


def answers(case: Case, runners: Sequence[Runner], images: Iterable[np.ndarray], effort: float = 0.0) -> Iterator[Any]:
    """Yield what `run` returns for every image uint8 `[height, width, 3]`, in order; `answer` where tokens count."""
    free: SimpleQueue[Runner] = SimpleQueue()
    for runner in runners:
        free.put(runner)

    def work(image: np.ndarray) -> Any:
        runner = free.get()
        try:
            return (runner.answer if case.program.spec.adaptive else runner.run)(image[None], effort)
        finally:
            free.put(runner)

    return in_order(work, images, len(runners))
