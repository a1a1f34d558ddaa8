"""A checkpoint is whole or it is the one before: through full disks, kill -9, flipped bits and foreign files."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.compress.training import checkpoint
from edgevit.compress.training.checkpoint import load, save
from edgevit.errors import OutputError, TrainingError


def some_state(step: int = 3) -> dict[str, Any]:
    layer = torch.nn.Linear(40, 50)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 40)).sum().backward()
    optimiser.step()
    return {
        "step": step,
        "model": dict(layer.state_dict()),
        "optimiser": optimiser.state_dict(),
        "bfloat16": torch.randn(3).bfloat16(),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "parts": OrderedDict(a=[1, 2.5, None, "x", True], b=(float("inf"), -(2**70))),
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and bool(one == two)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path, state = tmp_path / "last.pt", some_state()
    save(path, state)
    loaded = load(path)
    assert same(state, loaded)
    optimiser = torch.optim.AdamW(torch.nn.Linear(40, 50).parameters(), lr=0.1)
    optimiser.load_state_dict(loaded["optimiser"])
    assert names(tmp_path) == ["last.pt"]


def test_a_new_one_replaces_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save(path, some_state(step))
    assert load(path)["step"] == 2 and names(tmp_path) == ["last.pt"]


class FullDisk:
    """Stands for the file: takes `room` bytes, then the disk is full."""

    def __init__(self, raw: Any, room: int) -> None:
        self.raw, self.room = raw, room

    def write(self, content: Any) -> int:
        self.room -= memoryview(content).nbytes
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return int(self.raw.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float, earlier: bool
) -> None:
    path = tmp_path / "last.pt"
    save(path, some_state(1))
    room, before = int(part * path.stat().st_size), path.read_bytes()
    if not earlier:
        path.unlink()
    real = os.fdopen
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda handle, mode: FullDisk(real(handle, mode), room))
        said = "the previous one is intact" if earlier else "there was none before"
        with pytest.raises(OutputError, match=f"No space left on device; {said}"):
            save(path, some_state(2))
    assert names(tmp_path) == (["last.pt"] if earlier else [])
    if earlier:
        assert path.read_bytes() == before and load(path)["step"] == 1


@pytest.mark.parametrize("room", [0, 1000, 40_000])
def test_the_limit_of_a_file_leaves_the_previous_one(tmp_path: Path, room: int) -> None:
    """The real thing: the kernel refuses to let the file grow, which torch alone calls an unexpected position."""
    path = tmp_path / "last.pt"
    save(path, some_state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"big": torch.zeros(20_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large; the previous one is intact"):
            save(path, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(path)["step"] == 1 and names(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "last.pt"
    save(path, some_state(1))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os if name == "fsync" else Path, name, fail)
        with pytest.raises(OutputError, match="Input/output error; the previous one is intact"):
            save(path, some_state(2))
    assert load(path)["step"] == 1 and names(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """In the middle of torch's writing what a handler raises would come out as a fault of the disk, or not at all."""
    path, written = tmp_path / "c.pt", checkpoint._Remembering.write
    writes = 0

    class Left(BaseException):
        pass

    def leave(*_: object) -> None:
        raise Left

    def write(file: checkpoint._Remembering, content: Any) -> int:
        nonlocal writes
        writes += 1
        done = written(file, content)
        if writes == last:
            signal.raise_signal(number)
        return done

    monkeypatch.setattr(checkpoint._Remembering, "write", write)
    last = 0
    save(path, {"step": 1, "weights": torch.zeros(3)})
    before = signal.signal(number, leave)
    try:
        for each in range(1, writes + 1):
            last, writes = each, 0
            with pytest.raises(Left):
                save(path, {"step": 2, "weights": torch.zeros(3)})
            assert signal.getsignal(number) is leave
            assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    finally:
        signal.signal(number, before)
    assert load(path)["step"] == 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("no", "file"):
        with pytest.raises(OutputError, match="there was none before"):
            save(tmp_path / folder / "last.pt", {})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, np.float64(2)]}, r"state\['a'\]\[1\] is a float64"),
        ({"a": {"b": np.zeros(2)}}, r"state\['a'\]\['b'\] is a ndarray"),
        ({"a": {(1, 2): 3}}, r"has the key \(1, 2\)"),
        ({"a": Path("x")}, r"state\['a'\] is a PosixPath"),
        ({"a": {1, 2}}, "is a set"),
    ],
)
def test_a_state_that_could_not_be_read_back_is_not_saved(tmp_path: Path, value: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        save(tmp_path / "last.pt", value)
    assert not names(tmp_path)


def test_no_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path / "last.pt", tmp_path):
        with pytest.raises(TrainingError, match="there is no checkpoint .* to go on from; take another"):
            load(path)


def test_a_shortened_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, some_state())
    whole = path.read_bytes()
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TrainingError, match="is damaged or no checkpoint .*take another checkpoint"):
            load(path)


def test_a_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """Padding and names in the zip may differ; no value may."""
    path, state = tmp_path / "last.pt", some_state()
    save(path, state)
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        try:
            assert same(state, load(path)), f"byte {at} changed a value unseen"
        except TrainingError as error:
            refused += 1
            assert "is damaged" in str(error)
    assert refused > 100


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("touched",)


def test_foreign_files_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foreign.pt"
    weights = {f"blocks.{i}.weight": torch.zeros(2) for i in range(6)}
    for content, got in (
        (weights, r"got a file with blocks\.0\.weight, .* and 2 more"),
        ({}, "got a file with nothing"),
        ([1, 2], "got a list"),
        ({checkpoint._VERSION_KEY: 99}, "has version 99, this edgevit reads version 1"),
        ({checkpoint._VERSION_KEY: torch.zeros(2)}, "has version tensor"),
        ({checkpoint._VERSION_KEY: 1}, "holds no state"),
        ({checkpoint._VERSION_KEY: 1, "state": Evil()}, "is damaged or no checkpoint"),
    ):
        torch.save(content, path)
        with pytest.raises(TrainingError, match=got):
            load(path)
    for raw in (pickle.dumps({"state": Evil()}), b"\x89PNG\r\n", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(raw)
        with pytest.raises(TrainingError, match="is damaged or no checkpoint"):
            load(path)
    assert not (tmp_path / "touched").exists()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from edgevit.compress.training.checkpoint import load, save
torch.set_num_threads(1)
path = Path(sys.argv[1]) / "last.pt"

def state(step):
    return {"step": step, "weights": [torch.full((200, 200), float(step)) for _ in range(4)]}

def run(first, act):
    if not (child := os.fork()):
        try:
            act(first)
        finally:
            os._exit(3)
    return child

def loop(step):
    while True:
        save(path, state(step := step + 1))

def at(owner, name, nth):
    def act(step):
        real, calls = getattr(owner, name), iter(range(10**9))
        def counted(*arguments, **named):
            if next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)
        setattr(owner, name, counted)
        loop(step)
    return act

def check(child, least):
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child ended by itself"
    found = load(path)
    assert all((weight == found["step"]).all() for weight in found["weights"]), "a mixture of two checkpoints"
    assert found["step"] >= least, "went back"
    return found["step"]

save(path, state(0))
step = 0
from edgevit.compress.training import checkpoint
for owner, name in ((os, "fsync"), (Path, "replace"), (os, "fchmod"), (checkpoint._Remembering, "write")):
    for nth in (0, 1, 2, 3, 7):
        step = check(run(step, at(owner, name, nth)), step)
random.seed(1)
for _ in range(15):
    child = run(step, loop)
    time.sleep(random.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    step = check(child, step)
from edgevit.util.atomic import sweep
sweep(path.parent)  # as another start does
print(step, *os.listdir(path.parent))
"""


def test_kill_9_at_any_moment_leaves_a_whole_one(tmp_path: Path) -> None:
    """Killed at every kind of call that `save` makes, and at moments drawn by chance."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert not done.returncode, done.stderr
    step, *left = done.stdout.split()
    assert int(step) > 10 and left == ["last.pt"]


def test_a_checkpoint_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({checkpoint._VERSION_KEY: 1, "state": {"w": torch.zeros(10 << 20)}}, tmp_path / "stored.pt")
    path = tmp_path / "last.pt"
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(TrainingError, match="it unpacks to 419"):
        load(path)
    torch.save({checkpoint._VERSION_KEY: 1, "state": {"w": bytearray(10)}}, path)
    with pytest.raises(TrainingError, match="builtins.bytearray"):
        load(path)


def test_numbers_are_counted_once_and_a_state_inside_itself_ends() -> None:
    whole = torch.zeros(10)
    state: dict[str, Any] = {"a": whole, "b": [whole, (torch.zeros(2, 3), whole)], "c": {"d": 1}}
    state["c"]["itself"] = state
    assert checkpoint.count_numbers(state) == 16
    assert checkpoint.count_numbers({"meta": torch.empty(10**9, device="meta").expand(10**9)}) <= 10**9
