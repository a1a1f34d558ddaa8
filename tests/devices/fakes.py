"""A session on a machine that is not there: what it tells, and what comes of every step, is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevit.devices.machine import BoardAnswers, Content, Step, StepResult


class FakeSession:
    """See `edgevit.devices.machine.Session`; its Python is new and has every module."""

    def __init__(self, described: BoardAnswers, results: Mapping[str, StepResult]) -> None:
        self._described = described
        self._results = {"python": StepResult(status=0, out="[[3, 12, 1], []]", err=""), **results}

    def describe(self) -> BoardAnswers:
        return self._described

    def run(self, files: Mapping[str, Content], steps: Sequence[Step], *, timeout_s: float) -> dict[str, StepResult]:
        return {step.name: self._results[step.name] for step in steps}
