"""A board for tests: a real sshd on the loopback with keys, home and temporary folder of its own."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.devices.ssh.connection import Address

SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def need_sshd() -> str:
    """The path of sshd; without it these tests fail where the project is checked as a whole, and skip elsewhere."""
    if SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        absent = "no sshd to play the board, or no client: apt-get install openssh-server openssh-client"
        if os.environ.get("CI") or os.environ.get("EDGEVIT_CI"):
            pytest.fail(absent)
        pytest.skip(absent)
    return str(SSHD)


class Board:
    """A running sshd. `tmp` is where it puts temporary folders, `log` where a program says its process and folder."""

    def __init__(
        self, folder: Path, *, file_limit_bytes: int | None = None, login: Callable[[Path], Path] | None = None
    ) -> None:
        sshd = need_sshd()
        self.folder, self.tmp, self.log = folder, folder / "tmp", folder / "worker"
        self.tmp.mkdir(parents=True)
        (folder / "home").mkdir()
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        self.port = free_port()
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        config = [
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized",
            *("PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no", "PermitRootLogin yes"),
            f"SetEnv HOME={folder}/home TMPDIR={self.tmp} PATH={path} OMP_NUM_THREADS=1",
        ]
        if login is not None:  # what every login runs instead of its shell; it is told the temporary folder
            config.append(f"ForceCommand {login(self.tmp)}")
        (folder / "sshd_config").write_text("\n".join(config) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what the system's own service would make

        def limit() -> None:
            if file_limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, writing is an error and no signal

        with (folder / "sshd.log").open("wb") as log:
            self.sshd = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, preexec_fn=limit
            )
        until(self._listens, "sshd does not listen: " + (folder / "sshd.log").read_text())

    @property
    def address(self) -> Address:
        return Address(host="127.0.0.1", port=self.port)

    @property
    def url(self) -> str:
        return f"ssh://127.0.0.1:{self.port}"

    def client(self, folder: Path, *, known: str | None = None, key: str = "user") -> Path:
        """A folder for PATH whose `ssh` is the system's, configured to know this board's host key (or `known`)."""
        folder.mkdir()
        told = (self.folder / "host.pub").read_text() if known is None else known
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {told}\n" if told else "")
        (folder / "config").write_text(
            f"Host *\nIdentityFile {self.folder}/{key}\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile /dev/null\n"
        )
        write_ssh(folder, f'exec {shutil.which("ssh")} -F {folder}/config "$@"')
        return folder

    def assert_clean(self) -> None:
        """Nothing of a job is on the board, neither files nor processes (some end by themselves, a moment later)."""
        # os.walk, unlike rglob, takes it that folders go while it looks.
        left = [folder for folder, _, _ in os.walk(self.tmp)]
        until(lambda: not list(self.tmp.iterdir()), f"left on the board: {left}")
        if self.log.exists():
            worker = int(self.log.read_text().split()[0])
            until(lambda: gone(worker), f"the worker {worker} still runs")
            self.log.unlink()

    def stop(self) -> None:
        self.sshd.kill()
        self.sshd.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def write_ssh(folder: Path, script: str) -> None:
    """Put an `ssh` into a folder: a shell script."""
    (folder / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ssh").chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


def gone(process: int) -> bool:
    """Whether a process has ended, as a zombie too."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(holds: Callable[[], bool], complaint: str, patience_s: float = 15.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)
