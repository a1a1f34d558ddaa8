"""Two gloo processes are one process with the same global batch: the same curve, the same structure, the same end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevit import errors
from edgevit.compress.training.distributed import World, join, lost
from edgevit.program.program import load_program
from tests.compressing import (
    column,
    dense,
    ended,
    metrics,
    photos,
    recipe,
    saved,
    started,
    steps_logged,
    together,
    wait_for,
)

FLOAT_NOISE = 1e-4
NOISE = {"gradient": 5e-4}  # the norm adds up the noise of all gradients


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images") / "photos", each=24)


def command(tmp_path: Path, images: Path, *options: str, **numbers: object) -> list[str]:
    program = tmp_path / "dense"
    if not program.exists():
        saved(dense(), program)
    file = recipe(tmp_path / "recipe.toml", **numbers)
    return ["compress", str(program), "--data", str(images), "--macs", "0.5", "--recipe", str(file), *options]


def compare(one: Path, two: Path) -> None:
    """The same curve within float noise, the same structure, nearly the same weights."""
    assert len(metrics(one)) == len(metrics(two)) == 20
    stages = column(one, "stage")
    assert set(stages) == {0.0, 1.0}
    for name in ("loss", "gradient", "macs", "static_macs", "price", "rate"):
        np.testing.assert_allclose(
            column(two, name), column(one, name), rtol=NOISE.get(name, FLOAT_NOISE), atol=1e-6, err_msg=name
        )
    first, second = load_program(one / "program"), load_program(two / "program")
    assert [b.kept for b in first.spec.branches] == [b.kept for b in second.spec.branches]
    assert [b.gate is None for b in first.spec.branches] == [b.gate is None for b in second.spec.branches]
    for name, weight in first.weights.items():
        np.testing.assert_allclose(second.weights[name], weight, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(("groups", "accumulate", "tokens"), [("batch", 1, 0.0), ("average 5", 2, 0.5)])
def test_two_processes_train_as_one(groups: str, accumulate: int, tokens: float, images: Path, tmp_path: Path) -> None:
    """Groups cross the border between processes: `batch` is one group, and 5 does not divide 16."""
    given = command(tmp_path, images, "--groups", groups, accumulate=accumulate, tokens=tokens)
    assert ended(started([*given, "-o", str(tmp_path / "one")], tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    both = together([*given, "-o", str(tmp_path / "two")], tmp_path)
    codes = [ended(process) for process in both]
    assert codes == [0, 0], (tmp_path / "rank1.log").read_text()
    assert "Program:" in (tmp_path / "rank0.log").read_text()
    assert not {"Program:", "joint:", "edgevit:"} & set((tmp_path / "rank1.log").read_text().split())
    compare(tmp_path / "one", tmp_path / "two")


def test_torchrun_starts_it_and_one_process_resumes_it(images: Path, tmp_path: Path) -> None:
    """With the default groups, `recursive`. Nothing in a checkpoint depends on the number of processes."""
    given = command(tmp_path, images)
    assert ended(started([*given, "-o", str(tmp_path / "one")], tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "edgevit", *given]
    found = subprocess.run(
        [sys.executable, *run, "-o", str(tmp_path / "two"), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    compare(tmp_path / "one", tmp_path / "two")
    resumed = started([*given, "-o", str(tmp_path / "two"), "--resume"], tmp_path / "log")
    assert ended(resumed) == 0, (tmp_path / "log").read_text()


def test_a_process_left_alone_does_not_hang(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = together(command(tmp_path, images, "-o", str(out), checkpoint_seconds=0.01, epochs_joint=9), tmp_path)
    wait_for(lambda: steps_logged(out) >= 3, both[0])
    both[1].kill()
    assert ended(both[0]) == errors.TrainingError.exit_code
    said = (tmp_path / "rank0.log").read_text()
    assert "another process of this training is gone" in said
    assert "is kept, of step" in said
    assert "Traceback" not in said


def test_what_one_process_refuses_ends_all(images: Path, tmp_path: Path) -> None:
    """Only the first process looks for an old run; the other waits for it and must not wait for ever."""
    (tmp_path / "out" / "program").mkdir(parents=True)
    both = together(command(tmp_path, images, "-o", str(tmp_path / "out")), tmp_path)
    assert {ended(process) for process in both} <= {errors.OutputError.exit_code, errors.TrainingError.exit_code}
    assert "pass --resume" in (tmp_path / "rank0.log").read_text()


def test_a_batch_must_be_shared_evenly(images: Path, tmp_path: Path) -> None:
    both = together(command(tmp_path, images, "-o", str(tmp_path / "out"), batch=15), tmp_path)
    assert [ended(process) for process in both] == [errors.TrainingError.exit_code] * 2
    assert "a batch of 15 cannot be shared by 2 processes" in (tmp_path / "rank0.log").read_text()


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world, rows = join(), torch.arange(3.0)
    assert world == World()
    assert world.main
    world.barrier()
    assert world.gather(rows) is rows
    assert world.wrap(module := torch.nn.Linear(1, 1)) is module
    assert world.mean(np.array(2.0)) == 2.0


def test_others_that_cannot_be_reached_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(errors.TrainingError, match="the other 2 processes cannot be reached .*MASTER_PORT"):
        join()


def test_only_errors_of_the_others_are_blamed_on_them() -> None:
    assert "gone (Connection closed by peer" in lost(RuntimeError("Connection closed by peer [127.0.0.1]\nmore"))
    assert lost(RuntimeError("shapes (3,) and (4,) differ")) == ""
