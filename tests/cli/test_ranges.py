"""Numbers on the command line are held to the table of limits."""

from __future__ import annotations

import click
import pytest

from edgevit.cli import cli
from edgevit.cli.ranges import RUNS, SECONDS, SEED, THREADS, Number


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (THREADS, ("1", "1024"), ("0", "-1", "1025", "1000000", "9" * 5000, "1.5", "nan")),
        (RUNS, ("1", "1000000"), ("0", "1000001", "1e9")),
        (SEED, ("0", str(2**63 - 1)), ("-1", str(2**63), "9" * 5000)),
        (SECONDS, ("1", "2592000"), ("0", "2592001", "9" * 30)),
        (Number(0, 1), ("0", "1", "0.5"), ("nan", "inf", "-inf", "1.1", "1e400", "x")),
        (Number(min=0), ("0", "1e300"), ("nan", "inf", "-1", "1e400")),
    ],
)
def test_what_is_out_of_range_is_told(
    kind: click.ParamType[float], good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    assert [float(kind.convert(text, None, None)) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


@pytest.mark.parametrize("name", ["build", "compress", "profile", "verify"])
def test_every_number_of_a_command_has_both_ends_or_counts_what_is_there(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    ranges = {o.name: o.type for o in command.params if isinstance(o.type, click.IntRange | click.FloatRange)}
    assert {key for key, kind in ranges.items() if kind.max is None} <= {"limit"}
    assert all(isinstance(kind, click.IntRange | Number) for kind in ranges.values())
    assert not [o.name for o in command.params if o.type in (click.INT, click.FLOAT)]
