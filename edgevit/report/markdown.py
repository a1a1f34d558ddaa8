"""Markdown for a pull request: small tables that GitHub and GitLab show, every string kept text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"([\\`*_\[\]<>|#!~])")


def text(value: str) -> str:
    """Return a string as Markdown that shows it as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(value.split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; `numbers` are the columns set to the right."""
    rule = ["---:" if index in numbers else "---" for index in range(len(head))]
    lines = [[text(cell) or " " for cell in head], rule, *([text(cell) or " " for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
