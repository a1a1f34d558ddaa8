"""Packages that may be missing, and signals while they start."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from edgevit.errors import RuntimeMissingError
from edgevit.util.optional import imported


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *lines: str) -> str:
    (folder / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_when_a_package_has_started(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenVINO does, the package says that it failed when a handler raised below it."""
    lines = ("import signal", "try:", f"    signal.raise_signal({int(number)})", "except BaseException as error:")
    name = module(tmp_path, monkeypatch, f"starts_{int(number)}", *lines, "    raise ImportError('failed') from error")

    def handle(received: int, _: object) -> None:
        raise KeyboardInterrupt(received)

    before = signal.signal(number, handle)
    try:
        with pytest.raises(KeyboardInterrupt):
            imported(name, "pip install it")
    finally:
        signal.signal(number, before)
    assert name in sys.modules


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, monkeypatch, "lacks_another", "import no_such_package")
    with pytest.raises(RuntimeMissingError, match=r"lacks_another .*no_such_package.*install it: pip install it"):
        imported(name, "pip install it")
