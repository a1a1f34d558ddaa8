from __future__ import annotations

import click
import pytest

from edgevit.cli.board import Cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("2-3", (2, 3)), ("0", (0,)), ("0,2", (0, 2)), ("3, 0-1,1", (0, 1, 3)), ("0-4095", (*range(4096),))],
)
def test_cpus_as_linux_writes_them(text: str, cpus: tuple[int, ...]) -> None:
    assert Cpus().convert(text, None, None) == cpus


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1,,2", "4096", "99999999", "0x1", "\u0661"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no list of CPUs; give for example 2-3 or 0,2"):
        Cpus().convert(text, None, None)
