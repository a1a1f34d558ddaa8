"""Where the cache lies, for users with a home folder and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.errors import OutputError
from edgevit.util.resources import usable_cache, user_cache

VARIABLES = ("EDGEVIT_CACHE", "EDGEVIT_DEVICES", "XDG_CACHE_HOME", "HOME")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of whom the system knows nothing, as in many containers."""

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_nearest_variable_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache/edgevit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    assert user_cache() == tmp_path / ".cache/edgevit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert user_cache() == Path("/xdg/edgevit")
    monkeypatch.setenv("EDGEVIT_CACHE", "/own")
    assert user_cache() == Path("/own")


@pytest.mark.parametrize(
    ("home", "said"),
    [
        (None, "HOME is not set and the system knows no other"),
        ("", "HOME is not set"),
        ("/", "HOME is /"),
        ("/no/such/folder", "HOME is /no/such/folder"),
        ("relative", "HOME is relative"),
        ("/proc/version", "HOME is /proc/version"),
    ],
)
def test_without_a_home_the_message_names_what_to_set(
    home: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home is not None:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(OutputError, match=f"{said}.*set EDGEVIT_CACHE .* or XDG_CACHE_HOME"):
        user_cache()


def test_the_system_may_know_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pwd.getpwuid", lambda _: type("Entry", (), {"pw_dir": str(tmp_path)}))
    assert user_cache() == tmp_path / ".cache/edgevit"


def test_a_cache_is_made_and_tried_when_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert usable_cache() == tmp_path / ".cache/edgevit" and not list(usable_cache().iterdir())
    monkeypatch.setenv("HOME", "/proc")  # there, and of nobody
    with pytest.raises(OutputError, match="the cache folder /proc/.cache/edgevit cannot be written: .*EDGEVIT_CACHE"):
        usable_cache()


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc", "/"])
def test_commands_that_keep_nothing_work_without_a_home(home: str | None) -> None:
    """As with `env -i`, and for a user whom the system does not know."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    environment = kept if home is None else {**kept, "HOME": home}
    program = (
        "import pwd, sys\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
        "from edgevit.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    for command, key in (("doctor", "targets"), ("device list", "cpus")):
        words = [sys.executable, "-c", program, *command.split()]
        done = subprocess.run([*words, "--json"], env=environment, capture_output=True, check=False)
        assert done.returncode == 0 and not done.stderr and json.loads(done.stdout)[key]
    done = subprocess.run([*words], env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and (b"EDGEVIT_CACHE" in done.stdout or b"not set up" in done.stdout)
    setup = [sys.executable, "-c", program, "device", "remove", "qemu"]
    done = subprocess.run(setup, env=environment, capture_output=True, check=False)
    assert done.returncode == 21 and b"EDGEVIT_DEVICES" in done.stderr and b"Traceback" not in done.stderr
