"""A measurement in a few lines: what tells its paths apart is named."""

from __future__ import annotations

from edgevit.report.lines import lines
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
