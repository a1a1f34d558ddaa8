"""What the verifiers make of the evidence that a backend gives, and of what it cannot give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.backends import MemoryEvidence, backend, onnx_backend
from edgevit.build import case as cases
from edgevit.build import verify_build as verifying
from edgevit.build.case import Case
from edgevit.errors import BoundError, SkipError
from edgevit.onnx_form.assemble import assemble
from edgevit.schema.claims import BoundFigures, Claim
from edgevit.schema.memory_bound import PathMemory
from tests.building import image_set, lenient
from tests.bundles import FixedRunner
from tests.lowered import without_skipping
from tests.tiny import tiny_program
from tests.verify.test_memory import BOUND

PROGRAM = tiny_program(gated=True, skip=True)
RUNNER = FixedRunner(np.zeros((1, 10), np.float32), np.ones(4, np.uint8))


class Told:
    """A desk that tells what it was given to tell."""

    GATE_MS = 1e6

    def __init__(self, memory: MemoryEvidence | None = None) -> None:
        self.evidence = memory
        self.runs: list[bool] = []

    def executed(self, build: Any) -> None:
        return None

    def memory(self, build: Any, image: Any, efforts: Any, *, runs: bool) -> MemoryEvidence:
        self.runs.append(runs)
        assert self.evidence is not None
        return self.evidence


def case(target: str = "x86-64-onnxruntime") -> Case:
    wanted = lenient(target)
    images = image_set(PROGRAM)
    return Case(
        program=PROGRAM,
        plan=None,
        model=assemble(PROGRAM),
        target=wanted,
        folder=Path("nowhere"),
        runtime=backend(wanted.backend),
        calibration=images,
        evaluation=None,
    )


def told(monkeypatch: pytest.MonkeyPatch, desk: Told) -> list[str]:
    monkeypatch.setattr(verifying, "desk", lambda name: desk)
    return []


PATH = PathMemory(name="real", effort=0.0, open_branches=1, peak_bytes=60, nodes=())
MEMORY = MemoryEvidence(detail=BOUND, summary="held", measured=(PATH,), remark="60 bytes today")


def test_what_is_not_the_same_every_time_is_said_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said = told(monkeypatch, Told(MEMORY))
    found = verifying._bound(case(), RUNNER, said.append)
    assert said == ["60 bytes today"] and found.bound is not None
    assert found.claim.figures == BoundFigures(bound_bytes=100) and found.bound.measured_peak_bytes is None
    told(monkeypatch, Told(replace(MEMORY, exact=True, remark="")))
    found = verifying._bound(case(), RUNNER, said.append)
    assert len(said) == 1 and found.bound is not None and found.bound.measured_peak_bytes == 60
    assert isinstance(found.claim.figures, BoundFigures) and found.claim.figures.paths[0].peak_bytes == 60


def test_evidence_above_the_bound_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, Told(replace(MEMORY, measured=(replace(PATH, peak_bytes=101),))))
    with pytest.raises(BoundError, match="peak 101 bytes"):
        verifying._bound(case(), RUNNER, lambda _: None)


def test_what_runs_elsewhere_is_not_measured_and_skips_unseen_are_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "emulator_path", lambda: "/usr/bin/qemu")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    desk = Told(replace(MEMORY, measured=None))
    told(monkeypatch, desk)
    foreign = case("cortex-a72-tvm")
    assert foreign.elsewhere and foreign.runnable
    verifying._bound(foreign, RUNNER, lambda _: None)
    assert desk.runs == [False]
    found = verifying._skip(foreign, RUNNER, lambda _: None)
    assert found.claim.held is None and "does not tell what it runs" in found.claim.summary


def test_the_order_is_that_of_the_docstring_and_the_bound_is_last_where_nothing_runs() -> None:
    listed = [line.split()[0] for line in (verifying.__doc__ or "").splitlines()[2:]]
    assert [each.name for each in verifying.VERIFIERS] == listed


@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino"])
def test_a_model_smaller_than_its_overhead_is_held_to_one_with_empty_branches(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is kept is the same whichever look it was that held: equal inputs make equal bundles."""
    built = replace(case(target), folder=tmp_path)
    said: list[str] = []
    kept = []
    for margin in (9.0, -1.0):
        monkeypatch.setattr(verifying, "SKIP_MARGIN", margin)
        kept.append(_skip_of(built, said))
    assert kept[0] == kept[1] and kept[0].summary.endswith("or what empty branches take")
    assert said[-2].startswith("all skipped costs") and "same graph with empty branches" in said[-1]
    broken = tmp_path / "broken"
    broken.mkdir()
    onnx_backend(built.target.backend).compile(without_skipping(built.model), broken)
    desk = Told()
    desk.GATE_MS = 0.0
    told(monkeypatch, desk)
    with pytest.raises(SkipError, match="empty branches .* a closed gate does not save"):
        verifying._skip(built, replace(built, folder=broken).load(), said.append)


def test_without_such_a_twin_what_macs_say_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_skip_margin", lambda case, runner: -1.0)
    told(monkeypatch, Told())
    with pytest.raises(SkipError, match="MACs say"):
        verifying._skip(case("x86-64-v3-tvm"), RUNNER, lambda _: None)


def _skip_of(built: Case, said: list[str]) -> Claim:
    onnx_backend(built.target.backend).compile(built.model, built.folder)
    return verifying._skip(built, built.load(), said.append).claim
