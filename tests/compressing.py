"""What tests of training share: small photographs on disk, a short recipe, runs in forked processes."""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.tensorboard  # noqa: F401  # what a forked process needs, imported once
from PIL import Image

import edgevit.training  # noqa: F401
from edgevit.cli import main
from edgevit.models.program import Program, save_program
from edgevit.train.log import CSV_NAME
from tests.tiny import tiny_program

CLASSES = 4
PATIENCE_S = 100


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


def forked(
    arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None, room_bytes: int = 0
) -> ForkProcess:
    """Run the command line in a forked process, which needs no second import of torch; what it says goes to `log`.

    With `room_bytes` no file of it can grow beyond that, as on a full disk.
    """

    def run() -> None:
        os.environ.update(environment or {})
        if room_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes))
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(_code(arguments))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def _code(arguments: Sequence[str]) -> int:
    import sys
    import traceback

    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    try:
        return main(list(arguments))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def together(arguments: Sequence[str], logs: Path, size: int = 2) -> list[ForkProcess]:
    """The same command line in `size` processes that know each other as `torchrun` lets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        forked(arguments, logs / f"rank{rank}.log", {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]


def wait_for(met: Callable[[], bool], process: ForkProcess) -> None:
    """Wait until `met`, or the process has ended."""
    end = time.monotonic() + PATIENCE_S
    while not met() and process.is_alive():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def ended(process: ForkProcess) -> int:
    """The exit status of a process, which must end by itself."""
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the process does not end")
    return process.exitcode


def steps_logged(folder: Path) -> int:
    path = folder / CSV_NAME
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0
