"""The exit codes as rows, read from the error classes: `--help` prints them, the documents are tested against them."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.errors import EdgevitError


@dataclass(frozen=True, kw_only=True)
class ExitCode:
    """One process status: its number, the error class behind it ('' for the shell's own) and what it means."""

    code: int
    error: str
    meaning: str


def exit_codes() -> tuple[ExitCode, ...]:
    """Return every exit code of the command line, in ascending order."""
    rows = [
        ExitCode(code=0, error="", meaning="Done."),
        ExitCode(code=1, error="", meaning="An unexpected fault: a bug in edgevit."),
        ExitCode(code=2, error="", meaning="Wrong usage of the command line."),
        ExitCode(code=130, error="", meaning="Stopped with Ctrl-C."),
        ExitCode(code=141, error="", meaning="Whoever read the output stopped reading, such as `head`."),
        ExitCode(code=143, error="", meaning="Asked to end (SIGTERM)."),
    ]
    rows += [ExitCode(code=c.exit_code, error=c.__name__, meaning=_meaning(c)) for c in _leaves(EdgevitError)]
    return tuple(sorted(rows, key=lambda row: row.code))


def markdown_table() -> str:
    """Return the table as CONTRIBUTING.md holds it."""
    rows = [f"| {row.code} | {row.error or '-'} | {row.meaning} |" for row in exit_codes()]
    return "\n".join(["| code | error class | meaning |", "| --- | --- | --- |", *rows])


def _leaves(root: type[EdgevitError]) -> list[type[EdgevitError]]:
    """Return the classes that are raised: a base only groups them."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [root]


def _meaning(error: type[EdgevitError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0]
