from __future__ import annotations

import sys

import pytest

from edgevit.backends.tvm.run import canary
from edgevit.errors import RuntimeMissingError
from tests.backends.tvm.available import needs_tvm

VERSIONS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"}


@pytest.fixture
def other_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that is not the pinned one, whatever is installed."""
    monkeypatch.setattr(canary, "versions", lambda: VERSIONS)


def trial(program: str) -> tuple[str, ...]:
    return sys.executable, "-c", program


@needs_tvm
def test_the_installed_pair_works() -> None:
    assert canary.versions() == canary.PINNED
    canary.check()


def test_a_crash_is_an_error_that_names_step_pair_and_remedy(other_pair: None) -> None:
    crash = "import os, signal; print('import'); print('save', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(RuntimeMissingError) as caught:
        canary.check(trial(crash))
    for part in ("'save'", "signal 11", "apache-tvm-ffi 0.1.15.post2", "apache-tvm-ffi==0.1.14.post1", "edgevit[tvm]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("raise ImportError('no libtvm')", "'start' failed (ImportError: no libtvm)"),
        ("print('import'); raise SystemExit(3)", "'import' failed (no reason given)"),
        ("print('import')", "'import'"),
        ("pass", "'start'"),
    ],
)
def test_a_trial_that_does_not_end_well_is_an_error(other_pair: None, program: str, told: str) -> None:
    with pytest.raises(RuntimeMissingError) as caught:
        canary.check(trial(program))
    assert told in str(caught.value)


def test_a_trial_that_hangs_is_an_error(other_pair: None) -> None:
    with pytest.raises(RuntimeMissingError, match="not done after 0.5 s"):
        canary.check(trial("import time; time.sleep(60)"), timeout_s=0.5)


def test_another_pair_is_tried_and_the_pinned_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(canary, "check", lambda: tried.append(1))
    monkeypatch.setattr(canary, "versions", lambda: canary.PINNED)
    canary.require.__wrapped__()
    assert not tried
    monkeypatch.setattr(canary, "versions", lambda: VERSIONS)
    canary.require.__wrapped__()
    assert tried


def test_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "PINNED", {"edgevit-no-such-package": "1"})
    with pytest.raises(RuntimeMissingError, match=r"pip install 'edgevit\[tvm\]'"):
        canary.versions()
