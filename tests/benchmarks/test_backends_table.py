"""The table of the three runtimes: what stands in it comes from builds, and what was made is not made again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import backends
from benchmarks.backends_report import Report, Row, table
from edgevit.images.image_set import ImageSet
from edgevit.measure.environment import environment, snapshot
from edgevit.program.program import Program
from edgevit.schema.target import load_target
from edgevit.verify.accuracy import fraction
from tests.backends.tvm.available import import_or_skip
from tests.tiny import tiny_images, tiny_program

import_or_skip()

ROUNDS = 6
ROOT = Path(__file__).resolve().parents[2]


def images(program: Program, count: int) -> ImageSet:
    pixels = tiny_images(program.spec, count)
    names = tuple(map(str, range(count)))
    labels = np.zeros(count, np.int64)
    return ImageSet(images=pixels, labels=labels, names=names, unreadable=(), digest="0" * 64, source=Path("tiny"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> backends.Case:
    program = tiny_program(gated=True, skip=True)
    return backends.Case(
        key="tiny",
        program=program,
        calibration=images(program, 4),
        evaluation=images(program, 8),
        folder=tmp_path_factory.mktemp("work"),
    )


@pytest.fixture(scope="module")
def candidates(case: backends.Case) -> list[backends.Candidate]:
    targets = (load_target("x86-64-avx2-onnxruntime"), load_target("x86-64-v3-tvm"))
    return [backends.build(case, replace(target, int8=False, attention="float32")) for target in targets]


@pytest.fixture(scope="module")
def rows(case: backends.Case, candidates: list[backends.Candidate]) -> tuple[Row, ...]:
    return backends.rows(case, candidates, ROUNDS, None)


def test_every_path_is_timed_and_memory_is_within_its_bound(rows: tuple[Row, ...]) -> None:
    for row in rows:
        assert [path.path for path in row.paths] == ["all open", "all skipped", "real images"]
        assert row.agreement.value == 1.0 and row.top1 is not None and row.top1.images == 8
        memory = row.memory
        assert memory.measured_bytes is not None and 0 < memory.measured_bytes <= memory.bound_bytes
        assert memory.python_bytes is not None and row.compile_cpu_s > 0
    first, second = rows
    assert all(path.to_base.value == 1.0 for path in first.paths)
    assert first.memory.runner_bytes is None and first.program_bytes == 0
    assert second.memory.runner_bytes is not None and second.memory.runner_bytes > second.memory.bound_bytes
    assert second.program_bytes > 1 << 16


def test_what_was_made_is_kept(case: backends.Case, rows: tuple[Row, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BOUNDS", {})
    monkeypatch.setattr("edgevit.backends.onnxruntime.build", None)
    kept = backends.build(case, replace(load_target("x86-64-avx2-onnxruntime"), int8=False))
    assert kept.compile_cpu_s == rows[0].compile_cpu_s and backends.memory(case, kept) == rows[0].memory
    np.testing.assert_array_equal(backends.predict(case, kept), backends.predict(case, kept))


def test_the_table_says_what_was_measured(rows: tuple[Row, ...]) -> None:
    machine = environment(
        snapshot(), snapshot(), runtime="all", runtime_version="1", inference_precision="f32", threads=1
    )
    top1 = fraction(np.arange(8) < 3)
    generated = replace(rows[1], model="random", generated=True, top1=None, paths=rows[1].paths[2:])
    shown = (replace(rows[0], top1=top1), rows[1], generated)
    text = table(Report(command="c", machine=machine, rounds=ROUNDS, images=8, calibration=4, rows=shown))
    lines = text.splitlines()
    assert "## tiny" in lines and "## random (generated weights: no accuracy)" in lines
    assert any(line.startswith(f"| ONNX Runtime float | {top1.value:.1%} (") and "1.000 (" in line for line in lines)
    measured = rows[1].memory.measured_bytes or 0
    assert any(line.startswith("| TVM float |") and f"| {measured / 1e6:.2f} |" in line for line in lines)
    for before, line in zip(lines, lines[1:], strict=False):  # every row has its header's cells
        if before.startswith("|") and line.startswith("|"):
            assert before.count("|") == line.count("|")


def test_the_readme_says_what_the_table_says() -> None:
    rows = json.loads((ROOT / "reports/reference/backends.json").read_text(encoding="utf-8"))["rows"]
    shipped = {(row["backend"], row["int8"]): row for row in rows if row["model"] == "shipped"}
    tvm, ort = shipped["tvm", True], shipped["onnxruntime", True]

    def ratio(row: dict[str, Any], path: str) -> str:
        return next(f"{p['to_base']['value']:.2f}" for p in row["paths"] if p["path"] == path)

    readme = " ".join((ROOT / "docs/tvm.md").read_text(encoding="utf-8").split())
    assert (
        f"takes {ratio(tvm, 'all open')} of ONNX Runtime's float time with all gates of the shipped Program open and "
        f"{ratio(tvm, 'all skipped')} with none (ONNX Runtime's int8 build {ratio(ort, 'all open')} and "
        f"{ratio(ort, 'all skipped')})"
    ) in readme
    memory = tvm["memory"]
    assert (
        f"a run touches {memory['measured_bytes'] / 1e6:.2f} MB (bound {memory['bound_bytes'] / 1e6:.2f} MB)" in readme
    )
    assert f"the C++ program's process holds {memory['runner_bytes'] / 1e6:.0f} MB in all" in readme
