"""A log that was cut short and goes on ends as that of an undisturbed run."""

from __future__ import annotations

import csv
import importlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgevit.compress.training.log import CSV_NAME, TENSORBOARD_NAME, Log
from edgevit.errors import OutputError, TrainingError

STEPS = 12


def row(step: int) -> dict[str, float | None]:
    return {"loss": 1 / (step + 3), "macs, expected": 0.1 + step, "top1": None if step % 4 else step / 7}


def undisturbed(folder: Path) -> bytes:
    with Log(folder) as log:
        for step in range(STEPS):
            log.write(step, row(step))
    return (folder / CSV_NAME).read_bytes()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    # No types are published for it.
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / TENSORBOARD_NAME)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def later(folder: Path) -> None:
    """Let time pass: the names of event files, by which TensorBoard orders them, tell whole seconds."""
    for path in (folder / TENSORBOARD_NAME).iterdir():
        events, out, kind, seconds, rest = path.name.split(".", 4)
        path.rename(path.with_name(f"{events}.{out}.{kind}.{int(seconds) - 10}.{rest}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def test_a_row_reads_back_exactly(tmp_path: Path) -> None:
    rows: list[Mapping[str, float | None]] = [
        {"a": 0.1 + 0.2, "b": 3, "c": math.inf},
        {"c": -math.inf, "b": None, "a": 5e-324},
        {"a": math.nan, "b": -(2**60), "c": 1e22},
    ]
    with Log(tmp_path) as log:
        for step, each in enumerate(rows):
            log.write(10 * step, each)
    with (tmp_path / CSV_NAME).open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [r["step"] for r in read] == ["0", "10", "20"] and list(read[0]) == ["step", "a", "b", "c"]
    for wanted, got in zip(rows, read, strict=True):
        for name, value in wanted.items():
            found = float(got[name]) if got[name] else None
            assert found == value or (value is not None and math.isnan(value) and math.isnan(found or 0))
    assert read[0]["b"] == "3"


def test_each_row_is_on_disk_at_once(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        for step in range(3):
            log.write(step, row(step))
            assert (tmp_path / CSV_NAME).read_text().count("\n") == step + 2
            assert [s for s, _ in scalars(tmp_path, "loss")] == list(range(step + 1))


@pytest.mark.parametrize("resume_at", [1, 5, 11, 12])
@pytest.mark.parametrize("killed_at", [5, 12])
def test_a_resumed_log_ends_as_an_undisturbed_one(tmp_path: Path, whole: bytes, resume_at: int, killed_at: int) -> None:
    if resume_at > killed_at:
        resume_at = killed_at
    with Log(tmp_path) as log:
        for step in range(killed_at):
            log.write(step, {**row(step), "loss": 99.0} if step >= resume_at else row(step))
    later(tmp_path)
    with Log(tmp_path, resume_at=resume_at) as log:
        assert (tmp_path / CSV_NAME).read_text().count("\n") == resume_at + 1
        for step in range(resume_at, STEPS):
            log.write(step, row(step))
    assert (tmp_path / CSV_NAME).read_bytes() == whole
    # TensorBoard hides what was logged before the crash from the resumed step on.
    seen = scalars(tmp_path, "loss")
    assert [step for step, _ in seen] == list(range(STEPS))
    assert all(value == pytest.approx(1 / (step + 3)) for step, value in seen)
    assert [step for step, _ in scalars(tmp_path, "top1")] == [0, 4, 8]


@pytest.mark.usefixtures("no_tensorboard")
def test_a_torn_file_is_repaired_wherever_it_was_torn(tmp_path: Path, whole: bytes) -> None:
    """Killed after any number of bytes, resumed at a step before which everything had been logged."""
    path = tmp_path / CSV_NAME
    for length in range(len(whole) + 1):
        logged = max(whole[:length].count(b"\n") - 1, 0)
        for resume_at in {min(1, logged), logged}:
            path.write_bytes(whole[:length])
            with Log(tmp_path, resume_at=resume_at, say=lambda line: None) as log:
                for step in range(resume_at, STEPS):
                    log.write(step, row(step))
            assert path.read_bytes() == whole, f"torn after {length} bytes, resumed at {resume_at}"


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    later(tmp_path)
    with Log(tmp_path) as log:
        assert not (tmp_path / CSV_NAME).read_bytes()
        log.write(0, {"other": 1.0})
    assert (tmp_path / CSV_NAME).read_text() == "step,other\n0,1.0\n"
    assert scalars(tmp_path, "other") == [(0, 1.0)]
    assert scalars(tmp_path, "loss") == []


def test_a_log_that_needs_no_repair_is_not_rewritten(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    before = (tmp_path / CSV_NAME).stat()
    Log(tmp_path, resume_at=STEPS).close()
    after = (tmp_path / CSV_NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_rows_have_the_columns_of_the_first(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.write(0, {"a": 1.0, "b": 2.0})
        log.write(1, {"b": 3.0, "a": 4.0})
        for wrong in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}):
            with pytest.raises(ValueError, match="has the columns a, b; got the columns a"):
                log.write(2, wrong)
    assert (tmp_path / CSV_NAME).read_text() == "step,a,b\n0,1.0,2.0\n1,4.0,3.0\n"


def test_steps_rise(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.write(4, {"a": 1.0})
        for step in (4, 3):
            with pytest.raises(ValueError, match="does not come after step 4"):
                log.write(step, {"a": 1.0})
    with Log(tmp_path, resume_at=9) as log, pytest.raises(ValueError, match="does not come after step 4"):
        log.write(4, {"a": 1.0})
    with Log(tmp_path) as log, pytest.raises(ValueError, match="is empty"):
        log.write(0, {})


def test_a_resumed_log_of_other_columns_is_the_users_business(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    with Log(tmp_path, resume_at=3) as log, pytest.raises(TrainingError, match="move that file away"):
        log.write(3, {"loss": 1.0})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"epoch,loss\n0,1\n", r"line 1: its first column is 'epoch' instead of 'step'"),
        (b"step,loss\n0,1\nmean,2\n", r"line 3: 'mean' is no step"),
        (b"step,loss\n\xff\xfe,1\n", r"line 2: .* is no step"),
        (b"step,loss\n-1,1\n", r"line 2: '-1' is no step"),
    ],
)
def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / CSV_NAME).write_bytes(content)
    with pytest.raises(TrainingError, match=said):
        Log(tmp_path, resume_at=4)
    assert (tmp_path / CSV_NAME).read_bytes() == content


@pytest.mark.usefixtures("no_tensorboard")
def test_without_tensorboard_the_csv_is_written_and_it_is_said_once(tmp_path: Path, whole: bytes) -> None:
    said: list[str] = []
    with Log(tmp_path, say=said.append) as log:
        for step in range(STEPS):
            log.write(step, row(step))
    assert (tmp_path / CSV_NAME).read_bytes() == whole and not (tmp_path / TENSORBOARD_NAME).exists()
    assert len(said) == 1 and "pip install tensorboard" in said[0]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the log .*file.*--resume"):
        Log(tmp_path / "file")
    (tmp_path / TENSORBOARD_NAME).touch()
    with pytest.raises(OutputError, match="cannot write the log"):
        Log(tmp_path)


@pytest.mark.usefixtures("no_tensorboard")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"No space left on device; make room .* --resume"), Log(tmp_path) as log:
        log._file.close()
        log._file = Path("/dev/full").open("a")  # noqa: SIM115  # the log closes it
        log.write(0, {"a": 1.0})


def test_a_disk_that_is_full_for_tensorboard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Log(tmp_path) as log:
        log.write(0, {"a": 1.0})

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(log._board, "flush", full)
        with pytest.raises(OutputError, match="No space left on device"):
            log.write(1, {"a": 1.0})


KILLED = """
import os, signal, sys
from pathlib import Path
from edgevit.compress.training.log import Log
log = Log(Path(sys.argv[1]))
for step in range(5):
    log.write(step, {"loss": step / 3})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False, timeout=120)
    assert done.returncode == -9
    assert (tmp_path / CSV_NAME).read_text().splitlines()[-1] == f"4,{4 / 3!r}"
    assert [step for step, _ in scalars(tmp_path, "loss")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_a_row_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """TensorBoard's queue, left in the middle of a call, would let `close` wait for ever."""

    class Left(BaseException):
        pass

    def leave(*_: object) -> None:
        raise Left

    before = signal.signal(number, leave)
    try:
        with pytest.raises(Left), Log(tmp_path) as log:
            assert log._board is not None
            added = log._board.add_scalar

            def add(*arguments: object) -> None:
                signal.raise_signal(number)
                added(*arguments)

            monkeypatch.setattr(log._board, "add_scalar", add)
            log.write(0, row(0))
    finally:
        signal.signal(number, before)
    assert len((tmp_path / CSV_NAME).read_text().splitlines()) == 2
    assert [name for name in row(0) if scalars(tmp_path, name)] == [name for name, v in row(0).items() if v is not None]
