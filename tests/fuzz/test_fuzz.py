"""Every reader of files that others wrote, fuzzed for some seconds, and what was found once tried again."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.errors import EdgevitError
from edgevit.util.strict_json import dumps
from tests.absent import unavailable
from tests.fuzz import targets
from tests.fuzz.__main__ import NAMES, added, merged, table
from tests.fuzz.campaign import COMPILER, FOUND, NATIVE, Campaign, fault_of, fuzz, native_available
from tests.fuzz.seeds import SEEDS, write_seeds
from tests.fuzz.targets import MOST_BYTES, TARGETS, TooMuchError, held

RUNS = 1000  # of each target: two to six minutes of all, imports included
MOST_SECONDS = 900
INPUTS = sorted(path for path in FOUND.glob("*/*") if path.parent.name not in NATIVE)


def need_fuzzer(name: str) -> None:
    if name in NATIVE:
        if not native_available():
            unavailable(f"{COMPILER} is not installed; on Debian: apt install clang-19 libclang-rt-19-dev")
    elif sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info >= (3, 14):
        pytest.skip("atheris is published for x86-64 Linux and Python up to 3.13")
    elif importlib.util.find_spec("atheris") is None:
        unavailable("atheris is not installed; pip install 'edgevit[dev]'")


@pytest.mark.parametrize("name", NAMES)
def test_a_short_search_finds_no_fault(name: str, tmp_path: Path) -> None:
    """The same search each time, however fast the machine is."""
    need_fuzzer(name)
    campaign = fuzz(name, MOST_SECONDS, tmp_path, seed=1, runs=RUNS)
    assert not campaign.faults
    assert campaign.executions >= RUNS and campaign.edges > 50


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_was_found_once_is_an_error_now(path: Path, tmp_path: Path) -> None:
    held(path.parent.name, tmp_path)(path.read_bytes())


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "manifest"])  # whose files are elsewhere
def test_seeds_are_files_as_they_should_be(name: str, tmp_path: Path) -> None:
    """A reader that refused all of them would be fuzzed in its first lines only."""
    assert SEEDS.keys() == {*TARGETS, *NATIVE}
    (tmp_path / "seeds").mkdir()
    (tmp_path / "read").mkdir()
    write_seeds(name, tmp_path / "seeds")
    read, accepted = TARGETS[name](tmp_path / "read"), 0
    for seed in (tmp_path / "seeds").iterdir():
        try:
            read(seed.read_bytes())
            accepted += 1
        except EdgevitError:
            pass
    assert accepted


def test_an_exception_and_too_much_time_or_memory_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [1 << 20]

    def reader(data: bytes) -> None:
        if data == b"error":
            raise EdgevitError("one error")
        if data == b"bug":
            raise KeyError("bug")
        if data == b"large":
            peaks.append(peaks[-1] + MOST_BYTES + 1)

    monkeypatch.setattr(targets, "TARGETS", {"planted": lambda _: reader})
    monkeypatch.setattr(targets, "_peak_bytes", lambda: peaks[-1])
    read = held("planted", tmp_path)
    read(b"")
    read(b"error")
    with pytest.raises(KeyError):
        read(b"bug")
    with pytest.raises(TooMuchError, match="1024 MiB, allowed: 1024 MiB"):
        read(b"large")
    read = held("planted", tmp_path)
    monkeypatch.setattr(targets, "MOST_SECONDS", -1.0)
    with pytest.raises(TooMuchError, match="s, allowed"):
        read(b"")


def test_a_fault_is_told_in_a_line() -> None:
    atheris = " === Uncaught Python exception: ===\nKeyError: 'a'\nTraceback\n"
    libfuzzer = "==7== ERROR: libFuzzer: fuzz target exited\nTest unit written to /x/target-crash-1\n"
    sanitizer = "==7==ERROR: AddressSanitizer: heap-buffer-overflow on\nTest unit written to /x/model-crash-2\n"
    ends = ((atheris, libfuzzer), ("", sanitizer), ("", "Killed"))
    said = [fault_of(subprocess.CompletedProcess([], 1, *end)) for end in ends]
    assert said[0] == "KeyError: 'a' (target-crash-1)"
    assert said[1] == "ERROR: AddressSanitizer: heap-buffer-overflow on (model-crash-2)"
    assert said[2] == "exit code 1: Killed (no input was left)"


def test_the_report_has_a_line_for_each_target_and_each_fault() -> None:
    one = Campaign(target="program", seconds=60.4, executions=12345, edges=99, inputs=7, faults=())
    two = Campaign(target="manifest", seconds=60.4, executions=1, edges=2, inputs=3, faults=("KeyError (b-crash-1)",))
    text = table([one, two])
    assert "| program | 60 | 12,345 | 99 | 7 | 0 |" in text
    assert "| **all** | 121 | 12,346 |" in text
    assert "\n- manifest: KeyError (b-crash-1)\n" in text
    assert all(f"- {path.parent.name}: {path.stem.replace('-', ' ')}" in text for path in INPUTS)


def test_a_report_keeps_the_targets_that_did_not_run_again(tmp_path: Path) -> None:
    old = [Campaign(target=name, seconds=1.0, executions=1, edges=1, inputs=1, faults=("a",)) for name in NAMES[:2]]
    assert merged(tmp_path / "fuzzing.json", old) == old
    (tmp_path / "fuzzing.json").write_text(dumps(old))
    new = Campaign(target=NAMES[0], seconds=2.0, executions=2, edges=2, inputs=2, faults=())
    assert merged(tmp_path / "fuzzing.json", [new]) == [new, old[1]]


def test_executions_add_up_where_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "fuzzing.json"
    new = Campaign(target=NAMES[0], seconds=2.0, executions=2, edges=2, inputs=9, faults=())
    assert added(file, new) == new
    file.write_text(dumps([Campaign(target=NAMES[0], seconds=1.0, executions=1, edges=7, inputs=1, faults=("a",))]))
    assert added(file, new) == Campaign(target=NAMES[0], seconds=3.0, executions=3, edges=7, inputs=9, faults=())
