"""What a person sees of a training run, at a terminal and without one."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from edgevit.compress.training import show
from edgevit.compress.training.show import BranchState, Show

BRANCHES = (
    BranchState(name="b00_mhsa", kind="mhsa", units=2, units_total=3, open_rate=None),
    BranchState(name="b00_ffn", kind="ffn", units=512, units_total=768, open_rate=0.25),
    BranchState(name="b01_mhsa", kind="mhsa", units=0, units_total=3, open_rate=0.5),
    BranchState(name="b01_ffn", kind="ffn", units=768, units_total=768, open_rate=1.0),
)
ROW = {"loss": 0.412345, "rate": 3.125e-4, "kept": 7, "top1": None}


def terminal(width: int = 100) -> Console:
    return Console(force_terminal=True, file=io.StringIO(), width=width, height=40, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def picture(shown: Show, width: int = 100) -> list[str]:
    console = terminal(width)
    shown._console = console
    console.print(shown._picture())
    return [line.rstrip() for line in written(console).splitlines()]


def test_the_picture_tells_progress_figures_and_every_block(clock: list[float]) -> None:
    shown = Show(400, description="stage 1 [both]", console=terminal())
    clock[0] += 50
    shown.update(100, 312.4, ROW, BRANCHES)
    top, figures, heading, *blocks = picture(shown)
    assert re.fullmatch(r"stage 1 \[both\] +━+╸? +100/400 +312 images/s +0:02:30 left", top)
    assert re.split(r"\s{2,}", figures) == ["loss 0.4123", "lr 0.0003125", "kept 7", "top1 -"]
    assert heading.split() == ["block", "heads", "gate", "open", "neurons", "gate", "open"]
    first, second = ([cell for cell in line.split() if not set(cell) <= set("━╸")] for line in blocks)
    assert first == ["b00", "2/3", "always", "512/768", "25%"]
    assert second == ["b01", "0/3", "removed", "768/768", "100%"]
    assert [len(bar) for bar in re.findall("[━╸]+", blocks[0])] == [5, 5, 2] and "━━━━━━━━ 768/768" in blocks[1]


def test_a_bar_is_as_long_as_its_part() -> None:
    for part, text in ((0.0, ""), (0.5, "━━━━"), (0.5625, "━━━━╸"), (1.0, "━━━━━━━━")):
        console = terminal()
        console.print(show._bar(part, 8, "green"))
        assert written(console).strip() == text


@pytest.mark.parametrize("width", [40, 56, 60, 76, 100, 200])
def test_the_table_fits_terminals_down_to_56_columns(clock: list[float], width: int) -> None:
    shown = Show(400, description="stage 1", console=terminal())
    shown.update(100, 312.4, ROW, BRANCHES)
    lines = picture(shown, width)
    assert max(map(len, lines)) <= width
    if width >= 56:
        text = "\n".join(lines)
        assert all(word in text for word in ("b00", "b01", "512/768", "removed", "always", "100%", "neurons"))


def test_before_the_first_step_there_is_a_picture() -> None:
    (top,) = picture(Show(400, start=40, description="stage 1", console=terminal()))
    assert "40/400" in top and "? left" in top


def test_the_live_picture_is_drawn_and_wiped() -> None:
    console = terminal()
    with Show(50, description="stage 1", console=console, say=pytest.fail) as shown:
        for step in range(1, 51):
            shown.update(step, 10.0 * step, ROW, BRANCHES)
        draws = written(console).count("stage 1")
        until = time.monotonic() + 30
        while "50/50" not in written(console) and time.monotonic() < until:
            time.sleep(0.05)  # Live draws in its own time
        assert "50/50" in written(console) and "512/768" in written(console)
    assert isinstance(console.file, io.StringIO)
    after = console.file.getvalue()
    assert draws <= 5, "drawn once a step, not a few times a second"
    # Transient: it ends by going up and wiping as many lines as the picture has; then the cursor is back.
    assert after.endswith("\x1b[1A\x1b[2K" * 5) and "\x1b[?25h" in after


def test_an_error_while_training_leaves_a_clean_terminal() -> None:
    console = terminal()
    with pytest.raises(ZeroDivisionError), Show(50, description="stage 1", console=console) as shown:
        shown.update(1, 1.0, ROW, BRANCHES)
        raise ZeroDivisionError
    assert isinstance(console.file, io.StringIO) and "\x1b[?25h" in console.file.getvalue()


@pytest.mark.parametrize("total", [1, 7, 20, 21, 333, 5000])
def test_without_a_terminal_about_twenty_lines_are_said(total: int, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with Show(total, description="stage 1", say=said.append) as shown:
        for step in range(1, total + 1):
            shown.update(step, 312.4, ROW, BRANCHES)
    assert len(said) == min(total, show.LINES)
    assert f"step {total} of {total} (100%)" in said[-1]
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_says_only_what_is_left() -> None:
    said: list[str] = []
    with Show(1000, start=500, description="stage 1", say=said.append) as shown:
        for step in range(501, 1001):
            shown.update(step, 312.4, ROW, BRANCHES)
    assert [int(line.split()[3]) for line in said] == list(range(550, 1001, 50))


def test_a_line_tells_all_there_is(clock: list[float]) -> None:
    said: list[str] = []
    with Show(400, description="stage 1", say=said.append) as shown:
        clock[0] += 3600
        shown.update(100, 0.44, ROW, BRANCHES)
        shown.update(200, 312.4, {}, ())
    assert said == [
        "stage 1: step 100 of 400 (25%), 0.44 images/s, 3:00:00 left, loss 0.4123, lr 0.0003125, kept 7, "
        "heads 2/6, neurons 1280/1536, 2.2 of 4 branches run",
        "stage 1: step 200 of 400 (50%), 312 images/s, 1:00:00 left",
    ]


def test_the_time_left_follows_the_last_two_minutes(clock: list[float]) -> None:
    shown = Show(1000, start=100, description="stage 1", console=terminal())
    for step in range(101, 201):  # slow at first: 10 s a step
        clock[0] += 10
        shown.update(step, 1.0, {}, ())
    assert shown._time_left() == "2:13:20"
    for step in range(201, 601):  # then 1 s a step
        clock[0] += 1
        shown.update(step, 1.0, {}, ())
    assert shown._time_left() == "0:06:40"


def test_lines_are_logged(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level("INFO", logger="edgevit"), Show(1, description="stage 1") as shown:
        shown.update(1, 1.0, {}, ())
    assert caplog.messages[0].startswith("stage 1: step 1 of 1 (100%), 1.00 images/s")
    assert not capsys.readouterr().out and not sys.stderr.isatty()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    said: list[str] = []
    console = Console(force_terminal=True, file=io.StringIO())
    with Show(1, description="stage 1", console=console, say=said.append) as shown:
        shown.update(1, 1.0, {}, ())
    assert len(said) == 1 and not written(console)
