"""The part that runs on a board: takes a job over stdin, runs it in a folder of its own, answers, leaves nothing.

It is sent as one text to `python3 -c` and needs the standard library only, in any Python 3.6 or newer, so that an old
board gets a clear answer too. Its stdin is its lifeline: when that ends, whoever asked is gone, and it cleans up.
In: one line of JSON (see `main`), then, after it said EDGEVIT-READY, the bytes of every file one after the other.
Out: EDGEVIT-READY {"folder"}, EDGEVIT-WORKER {"group"}, and last, when all is removed, one EDGEVIT-RESULT {json}.
"""

import errno
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESERVE_BYTES = 16 << 20  # for what the runtime itself writes while measuring
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK_BYTES = 1 << 20


class Refused(Exception):
    """Why the job cannot be done: (kind, words)."""


class Lost(Exception):
    """Nobody is listening any more."""


def main() -> None:
    """Do one job and say its result.

    The job: {"python": [3, 11], "arch", "needs": [[module, package]], "files": [[name, bytes]], "command", "answer",
    "timeout_s"}. `command` is given to this Python in the job's folder, `answer` is the JSON file it leaves there. The
    result: {"answer"} or {"refused": kind, "words"}; "left" names the folder if it could not be removed.
    """
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # With -c, modules of the folder one logs in to would come first.
    sys.path[:] = [path for path in sys.path if path]
    job = json.loads(sys.stdin.buffer.readline().decode())
    result, folder = {}, None  # type: Any, Any
    try:
        check(job)
        folder = Path(tempfile.mkdtemp(prefix="edgevit-"))
        say("READY", {"folder": str(folder)})
        check_space(folder, sum(size for _, size in job["files"]))
        receive(folder, job["files"])
        result = {"answer": work(folder, job, wake)}
    except Refused as refusal:
        result = {"refused": refusal.args[0], "words": refusal.args[1]}
    except Lost:
        result = {"refused": "lost", "words": "the connection ended"}
    except OSError as error:
        result = {"refused": "space" if error.errno in NO_SPACE else "failed", "words": str(error)}
    if folder is not None:
        shutil.rmtree(str(folder), ignore_errors=True)
        if folder.exists():
            result["left"] = str(folder)
    say("RESULT", result)


def check(job: Any) -> None:
    """Refuse what cannot work before anything is copied: kinds python, arch, missing."""
    if sys.version_info[:2] < tuple(job["python"]):
        raise Refused("python", platform.python_version())
    if platform.machine() != job["arch"]:
        raise Refused("arch", platform.machine())
    missing = [package for module, package in job["needs"] if importlib.util.find_spec(module) is None]
    if missing:
        raise Refused("missing", " ".join(missing))


def check_space(folder: Path, needed: int) -> None:
    """Refuse files of `needed` bytes that do not fit where temporary folders are."""
    free = shutil.disk_usage(str(folder)).free
    if free < needed + RESERVE_BYTES:
        raise Refused("space", f"{free} bytes are free in {folder.parent}, needed: {needed + RESERVE_BYTES}")


def receive(folder: Path, files: Any) -> None:
    """Write the files that come over stdin; a name that leads out of the folder is refused."""
    for name, size in files:
        if name.startswith("/") or ".." in name.split("/"):
            raise Refused("failed", "the name of a file leads out of its folder")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        left = size
        with path.open("wb") as file:
            while left:
                chunk = sys.stdin.buffer.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise Lost
                file.write(chunk)
                left -= len(chunk)


def work(folder: Path, job: Any, wake: int) -> Any:
    """Run the command in a process group of its own until it ends, time is up, or nobody is listening."""
    deadline = time.monotonic() + job["timeout_s"]
    errors = folder / "stderr"
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with errors.open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, *job["command"]],
            cwd=str(folder),
            env=dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1", TMPDIR=str(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        say("WORKER", {"group": child.pid})
        while child.poll() is None:
            # Asleep until something happens: a measurement must not be disturbed.
            ready = select.select([0, wake], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise Refused("timeout", f"{job['timeout_s']:g} s")
            if 0 in ready or any(number != signal.SIGCHLD for number in os.read(wake, 64)):
                raise Lost
    finally:
        kill_group(child.pid)
        child.wait()
    try:
        return json.loads((folder / job["answer"]).read_bytes().decode())
    except (OSError, ValueError):
        words = errors.read_bytes().decode(errors="replace").strip().splitlines()[-1:]
        raise Refused("failed", words[0] if words else f"exit code {child.returncode}") from None


def kill_group(group: int) -> None:
    """End the worker and whatever it started."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def say(word: str, value: Any) -> None:
    """One line to whoever listens, if anybody does."""
    try:
        sys.stdout.write(f"EDGEVIT-{word} {json.dumps(value)}\n")
        sys.stdout.flush()
    except OSError:
        # Python flushes once more when it ends; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
