"""The deadline loop: what the report makes of times, which efforts it takes, and that deadline.h keeps its promise."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks.deadline import Report, Run, ends, parsed, plot, render, sequence
from edgevit.backends.tvm.compile.clib.source import TEMPLATES
from edgevit.measure.environment import environment, snapshot
from tests.absent import unavailable

LOOP = """
#include <stdio.h>
#include "deadline.h"
int main(void) {
  deadline control = deadline_of(10, 0, 8);
  double took, slower;
  while (scanf("%lf", &slower) == 1) {
    took = slower * (5 + control.effort);
    printf("%.9g %.9g\\n", (double)control.effort, took);
    deadline_took(&control, took);
  }
  return control.runs == 0;
}
"""


def report(loop: tuple[float, ...]) -> Report:
    runs = [
        Run(
            dense_ms=12.0,
            least_ms=6.0,
            loop_ms=ms,
            effort=1.0,
            dense_work=196,
            least_work=40,
            loop_work=100,
            same=place % 4 > 0,
        )
        for place, ms in enumerate(loop)
    ]
    machine = environment(
        snapshot(), snapshot(), runtime="tvm", runtime_version="tvm 1", inference_precision="f32", threads=1
    )
    return Report(
        command="c",
        machine=machine,
        model="m",
        target="t",
        images="i.tar",
        work="tokens left",
        least=-1,
        most=8,
        deadline_ms=9.0,
        first=100,
        runs=tuple(runs),
    )


def test_the_report_says_whether_the_deadline_held() -> None:
    text = render(report((*[8.0] * 96, *[10.0] * 4)))
    assert "| loop | 8.00 | 8.00 | 10.00 | 4.0% | 100.0 | held |" in text.splitlines()
    assert "| dense | 12.00 | 12.00 | 12.00 | 100.0% | 196.0 | missed |" in text.splitlines()
    assert "\nMet. The loop names the class of the dense run for 75.0% of the images." in text and "50.0% of" in text
    assert "9.00 ms an image, 0.9 of the median of dense runs of the 100 images before the sequence" in text
    assert "\n**Missed**." in render(report((*[8.0] * 90, *[10.0] * 10)))


def test_the_spread_of_dense_runs_tells_whether_the_machine_was_quiet() -> None:
    quiet = report((8.0,) * 20)
    assert quiet.spread == 1.0 and "That is below 1.12, at which a machine is taken to be quiet." in render(quiet)
    assert "quiet; 2 tries before it were noisier." in render(replace(quiet, tried=3))
    noisy = replace(quiet, runs=(*quiet.runs, *[replace(quiet.runs[0], dense_ms=16.0)] * 4), tried=2)
    assert noisy.spread > 1.12 and "in 2 tries: to be repeated on one." in render(noisy)


def test_a_deadline_that_dense_meets_shows_nothing() -> None:
    made = report((8.0,) * 20)
    eased = Report(**{**vars(made), "deadline_ms": 13.0})
    assert made.held("loop") and eased.held("dense") and "**Missed**" in render(eased)


def test_a_line_of_the_program_is_read_as_it_is_written() -> None:
    run = parsed("9.1000 5.2000 7.3000 1.5000 196 40 99 0")
    assert (run.dense_ms, run.least_ms, run.loop_ms, run.effort) == (9.1, 5.2, 7.3, 1.5)
    assert (run.dense_work, run.least_work, run.loop_work, run.same) == (196, 40, 99, False)


PROGRAM = """#!/bin/sh
echo "$3 $4" > asked
printf '7.2000\n9.1000 5.2000 7.3000 1.5000 196 40 99 0\n'
"""


def test_the_deadline_is_a_share_of_dense_runs_that_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "deadline"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    deadline_ms, runs = sequence(program, Path("w"), Path("i"), 100, -1.0, 8.0)
    assert (deadline_ms, len(runs), runs[0].loop_ms) == (7.2, 1, 7.3)
    assert Path("asked").read_text().split() == ["0.9", "100"]


def test_efforts_are_taken_where_they_change_the_work() -> None:
    assert ends((-8, -1, 0, 1, 4, 8), (40, 41, 60, 120, 190, 196), 196) == (-1, 4)
    assert ends((-1, 0, 1), (40, 60, 90), 196) == (-1, 1)
    with pytest.raises(click.ClickException, match="same work"):
        ends((-1, 0), (40, 40), 40)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(report((8.0,) * 20), tmp_path / "deadline.png")
    assert (tmp_path / "deadline.png").stat().st_size > 5000


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_the_loop_holds_whatever_the_images(spread: float, tmp_path: Path) -> None:
    """At most one run in twenty-six is late, after the first few; and effort is used, not given up."""
    if shutil.which("cc") is None:
        unavailable("the loop is compiled with cc: apt install gcc")
    (tmp_path / "loop.c").write_text(LOOP)
    words = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{TEMPLATES}", "loop.c", "-o", "loop"]
    subprocess.run(words, cwd=tmp_path, check=True)
    slower = np.random.default_rng(0).uniform(1, 1 + spread, 4000)
    slower[1000:1040] = 3.0  # a while in which nothing is in time
    given = "\n".join(map(str, slower))
    told = subprocess.run([tmp_path / "loop"], input=given, capture_output=True, text=True, check=True).stdout
    efforts, took = np.array([line.split() for line in told.splitlines()], dtype=float).T
    late = took > 10
    assert efforts[0] == 8 and efforts.min() == 0 and efforts.max() <= 8 and late[0]
    calm = np.r_[10:1000, 1040:4000]
    assert late[calm].mean() <= 1 / 26 and late[1000:1040].all()
    assert np.median(took[calm]) > 0.75 * 10
