"""A measurement in a few lines: what tells its paths apart is named."""

from __future__ import annotations

from edgevit.report.lines import lines
from edgevit.schema.measurement import PointLatency
from tests.report.sample import measurement, path


def test_where_every_branch_runs_tokens_tell_the_paths_apart() -> None:
    every = len(measurement().branches)
    paths = (path("all_open", 4.0, every), path("all_skipped", 2.0, every), path("real", 3.0, every))
    told = list(lines(measurement(paths=paths, tokens=((64, 32), (40, 17)))))
    assert told[0].startswith("most tokens ") and told[0].endswith("CPU  most patch tokens that the plan leaves")
    assert told[1].startswith("fewest tokens ") and told[1].endswith("fewest patch tokens that the plan leaves")
    assert told[2].startswith("real images ") and told[2].endswith("patch tokens left: 52, 24 on average")


def test_where_branches_are_skipped_they_do() -> None:
    told = list(lines(measurement(tokens=((64,), (40,)))))
    assert "all_open" in told[0] and "branches ran" in told[0]


def test_an_effort_above_every_threshold_is_a_word() -> None:
    times = dict.fromkeys(("expected_wall_ms", "expected_cpu_ms", "worst_wall_ms", "worst_cpu_ms"), 2.0)
    full = PointLatency(name="full", effort=1e30, branches_open=4.0, **times)
    assert any("expected at effort infinity; at most 2.00" in line for line in lines(measurement(points=(full,))))
