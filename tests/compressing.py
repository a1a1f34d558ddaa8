"""What tests of training share: small photographs on disk, a short recipe, runs in processes of their own."""

from __future__ import annotations

import contextlib
import csv
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.cli import main
from edgevit.compress.budgets import Budgets
from edgevit.compress.training.log import CSV_NAME
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc.inputs import Training
from edgevit.images.labelled import LabelledSet
from edgevit.program.program import Program, save_program
from tests.tiny import tiny_program

CLASSES = 4
PATIENCE_S = 100
SHORT = TrainRecipe(batch=16, epochs_joint=1, epochs_recover=1, threshold_images=8, precision="float32", workers=0)
HALF = Budgets(expected=0.5, static=0.7)


def photos(folder: Path, *, classes: int = CLASSES, each: int = 20, size: int = 32, seed: int = 0) -> Path:
    """A folder of one folder per class: noise, with a corner that is bright in a colour of the class."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        place = folder / f"kind{label}"
        place.mkdir(parents=True, exist_ok=True)
        for index in range(each):
            pixels = rng.integers(0, 120, (size, size, 3))
            pixels[: size // 2, :, label % 3] += 130
            pixels[:, : size // 2, (label // 3 + 1) % 3] += 100 * (label // 3)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index}.png")
    return folder


def dense(**options: Any) -> Program:
    """The small model that tests compress."""
    return tiny_program(**{"classes": CLASSES, "depth": 2, "dim": 32, "hidden": 64, **options})


def saved(program: Program, folder: Path) -> Path:
    save_program(program, folder)
    return folder


def recipe(path: Path, **numbers: Any) -> Path:
    """A TOML file of a short run in float32, with `numbers` instead of its own."""
    short = {"batch": 16, "epochs_joint": 2, "epochs_recover": 2, "threshold_images": 8, "precision": "float32"}
    lines = [f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in (short | numbers).items()]
    path.write_text("\n".join(lines))
    return path


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's log, without the speed."""
    with (folder / CSV_NAME).open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


def column(folder: Path, name: str) -> np.ndarray:
    return np.array([float(row[name] or "nan") for row in metrics(folder)])


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


CHILD = """
import resource, signal, sys
room = int(sys.argv[1])
if room:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands down that it is ignored
from edgevit.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Run:
    """The command line in a process of its own; what it says goes to a file."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: dict[str, str], room_bytes: int) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(room_bytes), *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.pid = self.process.pid

    @property
    def exitcode(self) -> int | None:
        return self.process.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def join(self, patience_s: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)


def started(arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None, room_bytes: int = 0) -> Run:
    """Start the command line. With `room_bytes` no file of it can grow beyond that, as on a full disk."""
    return Run(arguments, log, environment or {}, room_bytes)


def together(arguments: Sequence[str], logs: Path, size: int = 2) -> list[Run]:
    """The same command line in `size` processes that know each other as `torchrun` lets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        started(arguments, logs / f"rank{rank}.log", {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]


def wait_for(met: Callable[[], bool], process: Run) -> None:
    """Wait until `met`, or the process has ended."""
    end = time.monotonic() + PATIENCE_S
    while not met() and process.is_alive():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def ended(process: Run) -> int:
    """The exit status of a process, which must end by itself."""
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the process does not end")
    return process.exitcode


def steps_logged(folder: Path) -> int:
    path = folder / CSV_NAME
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def compressed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `edgevit compress`."""
    capsys.readouterr()
    status = main(["compress", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out, said.err


def job(data: LabelledSet, folder: Path, program: Program | None = None, **changed: Any) -> Training:
    """Return a short training of a tiny model, of half of its MACs; `changed` are other inputs."""
    program = program or dense()
    given = {"dense": program, "teacher": program, "data": data, "budgets": HALF, "recipe": SHORT, "folder": folder}
    return Training(**{**given, **changed})
