"""One connection to a board by the system's ssh client: every command on it is an argument list, never a local shell.

Who may log in, which host keys hold and which proxies lead there is what the user's own ssh configuration says; with
BatchMode nothing is asked, so an unknown host key is refused.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgevit.errors import DeviceError
from edgevit.util.atomic import scratch
from edgevit.util.text import printable

CONNECT_TIMEOUT_S = 15
# A connection that answers nothing for 3 x 5 s is gone.
OPTIONS = (
    *("BatchMode=yes", f"ConnectTimeout={CONNECT_TIMEOUT_S}", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
    *("RequestTTY=no", "RemoteCommand=none", "PermitLocalCommand=no"),
    *("ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no"),
)
ADDRESS = re.compile(r"ssh://(?:(?P<user>[^@/]*)@)?(?P<host>\[[^]/]*\]|[^@/:]*)(?::(?P<port>[^/]*))?/?")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]")
# A socket's path has at most 104 bytes on some systems, and ssh adds 17 to the one it is given.
TMPDIR_LIMIT_BYTES = 44
ALIVE = b"EDGEVIT-ALIVE"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a board is. `user` and `port` None: as the user's ssh configuration says."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """Return it as ssh itself names it."""
        return f"{self.user}@{self.host}" if self.user else self.host


def parse_address(text: str) -> Address:
    """Read `ssh://[user@]host[:port]`; only names that no shell and no option parser can mistake are taken.

    Raises:
        DeviceError: anything else.
    """
    found = ADDRESS.fullmatch(text)
    user, host, port = (found["user"], found["host"], found["port"]) if found else (None, "", None)
    faults = [
        (found is None, "it is not ssh://user@board[:port]"),
        (user is not None and not USER.fullmatch(user), f"user {user!r} is no plain name"),
        (found is not None and not HOST.fullmatch(host), f"host {host!r} is no plain name or [IPv6] address"),
        (
            port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535),
            f"port {port!r} is no number from 1 to 65535",
        ),
    ]
    for wrong, reason in faults:
        if wrong:
            raise DeviceError(f"device {text!r}: {reason}; give for example ssh://pi@raspberrypi.local:22")
    return Address(host=host.strip("[]"), user=user, port=int(port) if port else None)


class Connection:
    """A control connection that lives as long as its context; commands run on it without logging in again."""

    def __init__(self, address: Address, ssh: str, folder: Path) -> None:
        self.address = address
        self._ssh, self._folder = ssh, folder
        self._control = folder / "control"
        self._errors = folder / "stderr"
        with self._errors.open("wb") as errors:
            # `cat` and not -N: its stdin is a lifeline, so that the connection ends even if this process is killed.
            self._master = self._popen(["ControlMaster=yes"], "exec cat", errors)

    def start(self, command: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Run a command of the board's shell; `command` holds only what the caller wrote or quoted itself."""
        # Without the control connection ssh would log in again by itself; this proxy lets it fail instead.
        return self._popen(["ControlMaster=no", "ProxyCommand=false"], command, errors)

    def wait_until_open(self) -> None:
        """Return once the board's shell answers.

        Raises:
            DeviceError: it cannot be reached, is not the host it was, or refuses the login.
        """
        stdin, stdout = self._master.stdin, self._master.stdout
        assert stdin and stdout
        try:
            stdin.write(ALIVE + b"\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # ssh ended; why is read below
        # Names, keys and proxies take their time beside connecting itself.
        deadline, heard = time.monotonic() + 2 * CONNECT_TIMEOUT_S, b""
        while ALIVE not in heard.splitlines():
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise DeviceError(f"{self.address} did not answer within {2 * CONNECT_TIMEOUT_S} s")
            part = os.read(stdout.fileno(), 4096)
            if not part:
                self._master.wait()
                said = self._errors.read_text(errors="replace")
                raise explain(said if said.strip() else heard.decode(errors="replace"), self.address)
            heard = (heard + part)[-65536:]

    def closed(self) -> bool:
        """Return whether the connection has ended."""
        return self._master.poll() is not None

    def close(self) -> None:
        """End the connection; what still runs on it ends with it."""
        end(self._master)

    def _popen(self, options: list[str], command: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        arguments = [self._ssh, "-S", str(self._control)]
        arguments += [part for option in (*OPTIONS, *options) for part in ("-o", option)]
        if self.address.port:
            arguments += ["-p", str(self.address.port)]
        if self.address.user:
            arguments += ["-l", self.address.user]
        return subprocess.Popen(
            [*arguments, "--", self.address.host, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "LC_ALL": "C"},
            # Ctrl-C must reach this process alone: the connection is still needed to clean up.
            start_new_session=True,
        )


@contextmanager
def connect(address: Address) -> Iterator[Connection]:
    """Connect to a board; the connection is closed at the end, and its control socket lies in a private folder.

    Raises:
        DeviceError: there is no ssh client, or the board cannot be reached.
    """
    ssh = shutil.which("ssh")
    if ssh is None:
        raise DeviceError("there is no ssh client on this machine; install one: sudo apt-get install openssh-client")
    short = len(os.fsencode(tempfile.gettempdir())) <= TMPDIR_LIMIT_BYTES
    with scratch(None if short else Path("/tmp")) as folder:
        connection = Connection(address, ssh, folder)
        try:
            connection.wait_until_open()
            yield connection
        finally:
            connection.close()


def explain(errors: str, address: Address) -> DeviceError:
    """Return the error for what ssh said before it gave up."""
    log_in = f"ssh {f'-p {address.port} ' if address.port else ''}{address}"
    checks = (
        (
            "IDENTIFICATION HAS CHANGED",
            f"the host key of {address} is not the one known here: another machine answers, or it was set up again. "
            f"Compare it on the board; if it is right, remove the old one: ssh-keygen -R {_known_as(address)}",
        ),
        (
            "Host key verification failed",
            f"the host key of {address} is unknown; log in once by hand and compare its fingerprint: {log_in}",
        ),
        (
            "Permission denied",
            f"{address} refused the login; set up a key that needs no typing (ssh-copy-id, ssh-agent) until this "
            f"works: {log_in} true",
        ),
        ("Connection refused", f"{address} refused the connection; is sshd running there, on this port?"),
        ("Could not resolve hostname", f"no address is known for {address.host!r}; is the name right?"),
        ("timed out", f"{address} does not answer; is it on and in the same network?"),
        ("No route to host", f"there is no way to {address}; is it on and in the same network?"),
    )
    for phrase, message in checks:
        if phrase in errors:
            return DeviceError(message)
    return DeviceError(f"ssh cannot connect to {address}: {printable(errors)}; does this work? {log_in} true")


def end(process: subprocess.Popen[bytes], patience_s: float = 3.0) -> None:
    """Close a process' stdin, give it time to end by itself, then end it; its pipes are closed."""
    try:
        if process.stdin:
            process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def _known_as(address: Address) -> str:
    return f"'[{address.host}]:{address.port}'" if address.port not in (None, 22) else address.host
