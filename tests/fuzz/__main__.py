"""Fuzz the readers: `python -m tests.fuzz all --seconds 3600` for an hour each, `--report FILE` for a table of it.

Where the report is there already, the rows of the targets that ran are replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from edgevit.util.strict_json import dumps, write_atomic
from tests.fuzz.campaign import FOUND, NATIVE, Campaign, fuzz
from tests.fuzz.targets import MOST_BYTES, MOST_SECONDS, TARGETS

NAMES = (*TARGETS, *NATIVE)


def merged(file: Path, done: Sequence[Campaign]) -> list[Campaign]:
    """The campaigns of a report with those just done in place of older ones, in the order of the targets."""
    rows = json.loads(file.read_text()) if file.is_file() else []
    kept = [Campaign(**{**row, "faults": tuple(row["faults"])}) for row in rows]
    by_name = {campaign.target: campaign for campaign in (*kept, *done)}
    return [by_name[name] for name in NAMES if name in by_name]


def table(done: Sequence[Campaign]) -> str:
    """The campaigns as a markdown document: a line each, then every fault."""
    lines = [
        "# Fuzzing",
        "",
        "`python -m tests.fuzz all --report reports/reference/fuzzing`. Coverage-guided, from seeds of every form that "
        "a reader knows: Python readers by atheris, those of the C++ runner (`-native`) by libFuzzer under "
        "AddressSanitizer and UndefinedBehaviorSanitizer. A fault is any exception but edgevit's own errors, more than "
        f"{MOST_SECONDS:g} CPU seconds for an input, more than {MOST_BYTES >> 20} MiB, or a finding of a sanitizer. "
        "Seconds are wall time, seeds and imports included; branches are those of the reader that ran, as libFuzzer "
        "counts them; inputs are those kept because they reached something new.",
        "",
        "| target | seconds | executions | branches | inputs | faults |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {c.target} | {c.seconds:.0f} | {c.executions:,} | {c.edges:,} | {c.inputs:,} | {len(c.faults)} |"
        for c in done
    ]
    seconds, executions = sum(c.seconds for c in done), sum(c.executions for c in done)
    lines += [f"| **all** | {seconds:.0f} | {executions:,} | | | {sum(len(c.faults) for c in done)} |"]
    faults = [f"- {c.target}: {fault}" for c in done for fault in c.faults]
    lines += ["", *faults] if faults else []
    found = sorted(f"{path.parent.name}: {path.stem.replace('-', ' ')}" for path in FOUND.glob("*/*"))
    lines += [
        "",
        "Found by earlier runs, and fixed; the inputs lie in tests/fuzz/found, and every test run tries them:",
        "",
    ]
    lines += [f"- {line}" for line in found]
    return "\n".join(lines).rstrip() + "\n"


@click.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(["all", *NAMES]))
@click.option("--seconds", default=3600, show_default=True, type=click.IntRange(1), help="Of each target.")
@click.option("--seed", default=0, help="Of libFuzzer's choices; 0 takes the time of day.")
@click.option(
    "--kept", default="out/fuzz", show_default=True, type=click.Path(path_type=Path), help="For found inputs."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write FILE.json and FILE.md.")
def main(names: tuple[str, ...], seconds: int, seed: int, kept: Path, report: Path | None) -> None:
    """Fuzz targets one after the other; exits with 1 where a fault was found."""
    kept.mkdir(parents=True, exist_ok=True)
    done = []
    for name in NAMES if "all" in names else names:
        campaign = fuzz(name, seconds, kept.resolve(), seed=seed)
        done.append(campaign)
        click.echo(f"{name}: {campaign.executions} executions, {len(campaign.faults)} faults")
        for fault in campaign.faults:
            click.echo(f"  {fault}")
        if report is not None:
            rows = merged(report.with_suffix(".json"), done)
            write_atomic(report.with_suffix(".json"), dumps(rows))
            write_atomic(report.with_suffix(".md"), table(rows))
    sys.exit(any(c.faults for c in done))


if __name__ == "__main__":
    main()
