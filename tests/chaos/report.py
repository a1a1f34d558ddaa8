"""What chaos tried and what held, as a markdown document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(rows: Mapping[str, Any]) -> str:
    """The tables of kills, faults and soaks, as far as there are any."""
    lines = ["# Chaos", "", f"`make chaos` on {rows['machine']}."]
    for part, write in (("kills", _kills), ("faults", _faults), ("soak", _soak)):
        if rows.get(part):
            lines += ["", *write(rows[part])]
    return "\n".join(lines) + "\n"


def _kills(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Kills",
        "",
        "A command ended by a signal, at random moments of its time and before each of its renames (and after each "
        "exchange). Held: every output is the old or the new one, whole; those that belong together are of one run; "
        "another start succeeds and leaves nothing else. SIGKILL hits the command alone, SIGINT all its processes.",
        "",
        "| command | signal | moments | tried | ended before done | held |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        held = "; ".join(row["faults"]) or "all"
        cells = (row["command"], row["signal"], row["moments"], row["tried"], row["ended"], held)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _faults(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Faults",
        "",
        "What fails around a command, and its exit codes (0: it did not need what was missing). Held: one message, no "
        "traceback, an exit code that says what it was, the old result whole, nothing left.",
        "",
        "| command | fault | tried | exit codes | held |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for command, kind in dict.fromkeys((row["command"], _kind(row["fault"])) for row in rows):
        same = [row for row in rows if (row["command"], _kind(row["fault"])) == (command, kind)]
        codes = Counter(row["code"] for row in same)
        told = ", ".join(f"{code} ({count} times)" for code, count in sorted(codes.items()))
        held = "; ".join(dict.fromkeys(row["wrong"] for row in same if row["wrong"])) or "all"
        lines.append(f"| {command} | {kind} | {len(same)} | {told} | {held} |")
    return lines


def _kind(fault: str) -> str:
    """A fault without its size."""
    return " ".join(word for word in fault.split() if not word.isdigit())


def _soak(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Soak",
        "",
        "Images in turn, each run with a random effort. Growth: resident memory of the process that runs the model, "
        "from the end of a warm-up to the end. Compared: runs whose logits and gates are bit for bit the same at the "
        "end, and in two processes of two threads at a time. Gates: decisions that fit the effort.",
        "",
        "| model | runner | runs | images | resident | growth | compared | gates | held |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        cells = (
            row["model"],
            row["runner"],
            row["runs"],
            row["distinct"],
            f"{row['resident'][-1] / 1e6:.1f} MB",
            f"{row['growth'] / 1e3:.0f} kB",
            row["compared"],
            row["gates"],
            row["wrong"] or "all",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
