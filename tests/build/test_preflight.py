"""What cannot end well is refused before anything slow begins, and nothing is left where it was tried."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit import pipeline
from edgevit.api import job as build_job
from edgevit.api import training
from edgevit.api.build import Job, run_build
from edgevit.backends.tvm.compile import native
from edgevit.backends.tvm.run.runtime import compiles_for
from edgevit.build import accuracy, case
from edgevit.build.preflight import Output, check_limit, ready
from edgevit.cli import main
from edgevit.errors import EdgevitError, OutputError, ProgramError, RuntimeMissingError, TargetError
from edgevit.program.program import save_program
from edgevit.schema.target import load_target
from edgevit.util.resources import shipped
from edgevit.verify.accuracy import Named
from tests.backends.tvm.available import needs_tvm
from tests.building import image_set
from tests.bundles import sample_bundle
from tests.tiny import tiny_program

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def program(tmp_path: Path) -> Path:
    save_program(tiny_program(gated=True, skip=True), tmp_path / "program")
    return tmp_path / "program"


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages that take time fail the test when one of them begins."""

    def begun(*_: object, **__: object) -> None:
        pytest.fail("something slow began")

    for name in ("take_images", "load_kept"):
        monkeypatch.setattr(build_job, name, begun)
    for name in ("compress", "build"):
        monkeypatch.setattr(pipeline, name, begun)


def refused(error: type[EdgevitError], said: str, *outputs: Output) -> None:
    with pytest.raises(error, match=said):
        ready(outputs)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    ready([Output(path=tmp_path / "new" / "deeper" / "out"), Output(path=tmp_path / "page.html", folder=False)])
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused(OutputError, "file is no folder", Output(path=tmp_path / "file" / "out"))
    refused(OutputError, "file is a file", Output(path=tmp_path / "file"))
    refused(
        OutputError,
        "is a folder; choose another place with --html",
        Output(path=tmp_path, option="--html", folder=False),
    )
    refused(OutputError, "dangling is a link that leads nowhere", Output(path=tmp_path / "dangling"))
    refused(OutputError, "no name of its own", Output(path=Path()))
    refused(OutputError, "no name of its own", Output(path=tmp_path / ".."))
    refused(OutputError, "/proc/out cannot be written", Output(path=Path("/proc/out")))
    refused(OutputError, "is where a disk is mounted", Output(path=Path("/proc")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    refused(OutputError, "Permission denied; choose another place with -o", Output(path=tmp_path / "out"))
    tmp_path.chmod(0o755)


def test_names_leave_room_for_what_is_added_while_writing(tmp_path: Path) -> None:
    refused(OutputError, "has 240 bytes, at most 239 fit", Output(path=tmp_path / ("n" * 240)))
    refused(OutputError, "has 300 bytes, at most 239 fit", Output(path=tmp_path / ("ü" * 150) / "out"))
    refused(
        OutputError, "path of out has .* bytes, at most 3936", Output(path=tmp_path.joinpath(*["n" * 200] * 20, "out"))
    )
    name = "n" * 239
    ready([Output(path=tmp_path / name)])
    sample_bundle(tmp_path / name)  # so long a name does work


def test_outputs_that_replace_each_other_are_refused(tmp_path: Path) -> None:
    one = Output(path=tmp_path / "out")
    refused(
        OutputError, "in each other's way", one, Output(path=tmp_path / "x" / ".." / "out", option="--save-program")
    )
    refused(OutputError, "in each other's way", one, Output(path=tmp_path / "out" / "program"))
    ready([Output(path=tmp_path / "run", kept=True), Output(path=tmp_path / "run" / "teacher", kept=True)])


def test_a_disk_that_is_certainly_too_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total=10**9, used=0, free=3_000_000))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ready([Output(path=tmp_path / "a", needs_bytes=2_000_000)], temporary_bytes=1_000_000)
    with pytest.raises(OutputError, match=r"has 3.0 MB free, at least 3.5 MB are needed"):
        ready([Output(path=tmp_path / "a", needs_bytes=2_000_000)], temporary_bytes=1_500_000)


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    refused(OutputError, "set TMPDIR", Output(path=tmp_path / "out", kept=True))


@pytest.mark.usefixtures("nothing_slow")
@pytest.mark.parametrize("option", ["output", "save_program"])
def test_a_build_asks_before_it_reads_the_weights(program: Path, option: str) -> None:
    changes: dict[str, Any] = {option: Path("/proc/out")}
    job = replace(Job(model=str(program), target="x86-64-onnxruntime"), **changes)
    with pytest.raises(OutputError, match="/proc/out cannot be written"):
        run_build(job)


def test_a_build_asks_for_room_once_it_knows_the_weights(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total=10**9, used=0, free=100))
    monkeypatch.setattr(build_job, "take_images", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(OutputError, match="MB are needed"):
        run_build(Job(model=str(program), target="x86-64-onnxruntime", output=tmp_path / "out"))


def tvm_target(tmp_path: Path, **changes: str) -> Path:
    """A file of the AVX2 target of TVM with other lines."""
    text = (shipped("targets") / "x86-64-v3-tvm.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.partition(" =")[0] not in {"name", *changes}]
    path = tmp_path / "own.toml"
    path.write_text("\n".join(['name = "own"', *(f"{key} = {value}" for key, value in changes.items()), *lines]))
    return path


@needs_tvm
@pytest.mark.usefixtures("nothing_slow")
def test_a_cpu_that_no_kernels_are_for_is_refused_at_once(program: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no CPU 'i486'"):
        run_build(Job(model=str(program), target=str(tvm_target(tmp_path, cpu='"i486"')), output=tmp_path / "out"))


@needs_tvm
@pytest.mark.usefixtures("nothing_slow")
def test_a_missing_compiler_is_refused_at_once(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(model=str(program), target="x86-64-v3-tvm", output=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.which", lambda _: None)
        with pytest.raises(RuntimeMissingError, match="g\\+\\+ is not installed"):
            run_build(job)
    monkeypatch.setattr("edgevit.backends.tvm.compiles_for", lambda: ("aarch64",))
    with pytest.raises(RuntimeMissingError, match="cannot compile for x86_64, only for: aarch64"):
        run_build(job)


@needs_tvm
def test_what_tvm_compiles_for_is_asked_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"aarch64", "x86_64"} <= set(compiles_for())
    failing = "from edgevit.errors import RuntimeMissingError; raise RuntimeMissingError('no LLVM')"
    monkeypatch.setitem(compiles_for.__globals__, "ASK", (sys.executable, "-c", failing))
    with pytest.raises(RuntimeMissingError, match="^TVM's compiler cannot be used: no LLVM$"):
        compiles_for()


@pytest.mark.usefixtures("nothing_slow")
def test_a_missing_runtime_is_refused_at_once(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeMissingError, match="openvino"):
        run_build(Job(model=str(program), target="x86-64-openvino", output=tmp_path / "out"))


def test_training_asks_before_it_reads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_prepared", lambda *_: pytest.fail("something was read"))
    for options in ({"output": Path("/proc/out")}, {"output": None, "teacher_cache": Path("/proc/out")}):
        with pytest.raises(OutputError, match="/proc/out cannot be written"):
            training.run_compress(training.CompressJob(model="m", data="d", **options))


@pytest.mark.parametrize("command", ["profile", "report"])
def test_measuring_and_reporting_ask_before_they_open_the_bundle(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgevit.bundle.read.open_bundle", lambda _: pytest.fail("the bundle was opened"))
    option = {"profile": "-o", "report": "--html"}[command]
    for path in ("/proc/out", "n" * 250):
        assert main([command, "out/deit", option, path]) == OutputError.exit_code
    assert f"{'n' * 40}... has 250 bytes, at most 239 fit there" in capsys.readouterr().err


@needs_tvm
def test_a_runner_for_this_machine_is_built_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without a home folder; what is compiled is then not kept."""
    compiled: list[str] = []

    def compile_runner(*_: object) -> bytes:
        compiled.append("once")
        return b"program"

    monkeypatch.setattr(native, "_compile", compile_runner)
    monkeypatch.setenv("EDGEVIT_CACHE", "/proc/cache")
    for _ in range(2):
        assert native.build_runner(platform.machine(), tmp_path).read_bytes() == b"program"
    assert len(compiled) == 2
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        native.build_runner(platform.machine(), tmp_path)
    assert len(compiled) == 3


def test_max_drop_counts_classes_and_is_refused_where_there_are_none() -> None:
    """Even where the original is at hand: of one score only its class could be compared, which is always the first."""
    program = tiny_program(gated=True, classes=1)
    with pytest.raises(ProgramError, match="tiny decides between none"):
        check_limit(program, load_target("x86-64-onnxruntime"), image_set(program), 1.0, given=True)
    named = Named(build=np.ones(3, np.int64), floats=np.zeros(3, np.int64), cosines=np.ones(3), decides="score")
    assert accuracy.answers_of(program.spec, named, image_set(program).images) is None
    dense = tiny_program(classes=1).spec
    assert accuracy.answers_of(dense, named, image_set(program).images) is named.floats


def test_max_drop_is_refused_where_nothing_here_can_judge_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "emulator_path", lambda: None)
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    program = tiny_program()
    with pytest.raises(TargetError, match="--max-drop cannot be judged here: machine code for aarch64"):
        check_limit(program, load_target("cortex-a72-tvm"), image_set(program), 1.0)
