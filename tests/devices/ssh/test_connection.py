"""Addresses that could be mistaken for something else, and the arguments that ssh is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevit.devices.ssh.connection import Address, connect, parse_address
from edgevit.errors import DeviceError
from tests.devices.board import write_ssh
from tests.devices.conftest import use


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("ssh://board", "board", None, None),
        ("ssh://pi@raspberrypi.local", "raspberrypi.local", "pi", None),
        ("ssh://pi@10.0.0.7:2222/", "10.0.0.7", "pi", 2222),
        ("ssh://me@[fe80::1%eth0]:22", "fe80::1%eth0", "me", 22),
    ],
)
def test_addresses(text: str, host: str, user: str | None, port: int | None) -> None:
    assert parse_address(text) == Address(host=host, user=user, port=port)


@pytest.mark.parametrize(
    "text",
    [
        "board",
        "ssh://",
        "http://board",
        "ssh://-oProxyCommand=touch x",
        "ssh://-oProxyCommand=x@board",
        "ssh://a;rm -rf ~@board",
        "ssh://board;reboot",
        "ssh://a b@board",
        "ssh://a'b@board",
        'ssh://a"b@board',
        "ssh://$(id)@board",
        "ssh://`id`@board",
        "ssh://pi@board\n",
        "ssh://pi\n@board",
        "ssh://pi@board:0",
        "ssh://pi@board:65536",
        "ssh://pi@board:22 -oX=y",
        "ssh://pi@board:-p",
        "ssh://pi@board:٢٢",
        "ssh://pi@board/home",
        "ssh://@board",
        "ssh://pi:secret@board",
        "ssh://pi@[::1;x]",
    ],
)
def test_hostile_and_wrong_addresses_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="give for example ssh://"):
        parse_address(text)


@given(st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_taken_is_plain(user: str, host: str) -> None:
    try:
        address = parse_address(f"ssh://{user}@{host}")
    except DeviceError:
        return
    plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:%")
    assert set(address.host) | set(address.user or "") <= plain
    assert not address.host.startswith("-") and not (address.user or "").startswith("-")


def test_ssh_is_told_to_ask_nothing_and_host_keys_stay_the_users_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    write_ssh(tmp_path / "fake", f'for a; do echo "$a"; done >> {tmp_path}/arguments; exec cat')
    use(tmp_path / "fake", monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))  # too long for a socket
    with connect(Address(host="board", user="pi", port=2222)) as connection:
        given = (tmp_path / "arguments").read_text().splitlines()
        control = Path(given[given.index("-S") + 1])
        assert control.parent.stat().st_mode & 0o077 == 0
        assert given[-3:] == ["--", "board", "exec cat"]
        assert given[given.index("-l") + 1] == "pi" and given[given.index("-p") + 1] == "2222"
        assert {"BatchMode=yes", "ControlMaster=yes", "ForwardAgent=no", "ClearAllForwardings=yes"} <= set(given)
        assert not any("HostKey" in argument or "KnownHosts" in argument for argument in given)
        assert not connection.closed()
    assert connection.closed() and not control.parent.exists()
