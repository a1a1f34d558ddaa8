"""Kills, faults and a soak, reported: `python -m tests.chaos -o reports/reference` writes chaos.md and chaos.json.

Every row is written as it grows, and `--resume` goes on from there; what did not hold begins anew. EDGEVIT_DATA names a
folder of real images to soak with; without it the photographs that ship are taken in turn. Disks are filled and made
read-only by mounts, which takes root or a kernel that lets users make name spaces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from edgevit.measure.environment import cpu_name
from edgevit.util.strict_json import dumps, write_atomic
from tests.chaos import faults, kills, run, soak
from tests.chaos.report import markdown

PARTS = ("kills", "faults", "soak")
KILLED = ("build", "build-openvino", "build-tvm", "compress", "device")
FAULTED = ("build", "build-openvino", "build-tvm", "compress", "device", "profile", "report")
SOAKED = {"vit_tiny_cifar10": 1.0, "vit_tiny_gated": 0.1}  # a shipped model and its share of the runs: one is slower


# What tells the rows of a part apart.
KEYS = {"kills": ("command", "signal", "moments"), "faults": ("command", "fault"), "soak": ("model", "runner")}
Row = Mapping[str, Any]
Done = Mapping[tuple[str, ...], Row]


@click.command()
@click.option("--moments", default=100, show_default=True, type=click.IntRange(1), help="Random moments per command.")
@click.option("--runs", default=20_000, show_default=True, type=click.IntRange(1), help="Images per runner.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Repeatable; the other reports are kept.")
@click.option("--command", "names", multiple=True, type=click.Choice(FAULTED), help="Kill or starve these alone.")
@click.option("--runner", "runners", multiple=True, type=click.Choice(soak.RUNNERS), help="Soak these alone.")
@click.option("--resume", is_flag=True, help="Keep what held, and go on with what is begun.")
@click.option("-o", "--out", default="out/chaos", show_default=True, type=click.Path(path_type=Path, file_okay=False))
def main(
    moments: int,
    runs: int,
    only: tuple[str, ...],
    names: tuple[str, ...],
    runners: tuple[str, ...],
    *,
    resume: bool,
    out: Path,
) -> None:
    """Try to break edgevit; exits with 1 if something broke."""
    run.prepare()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "chaos.json"
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for part in only or PARTS:
            done = _done(kept, part) if resume else {}
            if not resume and not names and not runners:
                forget(kept, part)
            for row in _rows(
                part, Path(folder), done, runners if part == "soak" else names, moments=moments, runs=runs
            ):
                record(kept, part, row)
                click.echo(json.dumps(row))
    rows = json.loads(kept.read_bytes())
    write_atomic(out / "chaos.md", markdown(rows))
    click.echo(f"wrote {out / 'chaos.md'}")
    if broke := [row for part in PARTS for row in rows.get(part, ()) if not held(row)]:
        raise SystemExit(f"{len(broke)} rows did not hold")


def held(row: Row) -> bool:
    """Return whether nothing was wrong in a row of any part."""
    return not (row.get("faults") or row.get("wrong"))


def record(kept: Path, part: str, row: Row) -> None:
    """Put a row in the place of the one of the same name, in a file that others may write to in between."""
    rows: dict[str, Any] = json.loads(kept.read_bytes()) if kept.exists() else {}
    by_key = {_key(part, old): old for old in rows.get(part, ())} | {_key(part, row): row}
    rows[part] = list(by_key.values())
    if part == "kills":
        signals = [number.name for number in kills.SIGNALS]
        rows[part].sort(key=lambda row: (row["command"], signals.index(row["signal"]), row["moments"] != kills.RANDOM))
    write_atomic(kept, dumps(rows | {"machine": cpu_name(Path("/"))}))


def forget(kept: Path, part: str) -> None:
    """Drop the rows of a part."""
    if kept.exists():
        write_atomic(kept, dumps(json.loads(kept.read_bytes()) | {part: []}))


def _key(part: str, row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in KEYS[part])


def _done(kept: Path, part: str) -> Done:
    rows = json.loads(kept.read_bytes()).get(part, ()) if kept.exists() else ()
    return {_key(part, row): row for row in rows if held(row)}


def _rows(
    part: str, root: Path, done: Done, names: tuple[str, ...], *, moments: int, runs: int
) -> Iterator[dict[str, Any]]:
    if part == "kills":
        chosen = tuple(name for name in KILLED if not names or name in names)
        yield from map(dataclasses.asdict, _kills(root, done, chosen, moments))
    elif part == "faults":
        yield from map(dataclasses.asdict, _faults(root, done, names or FAULTED))
    else:
        yield from _soak(root, done, names or soak.RUNNERS, runs)


def _kills(root: Path, done: Done, names: tuple[str, ...], moments: int) -> Iterator[kills.Killed]:
    for victim in kills.victims(names, root):

        def begun(number: signal.Signals, kind: str, victim: kills.Victim = victim) -> kills.Killed | None:
            row = done.get((victim.command.name, number.name, kind))
            return None if row is None else kills.Killed(**{**row, "faults": tuple(row["faults"])})

        for index, number in enumerate(kills.SIGNALS):
            most = (moments + index) // len(kills.SIGNALS)
            yield from kills.at_random(victim, number, most, begun=begun(number, kills.RANDOM))
        for number in kills.SIGNALS:
            yield from kills.at_renames(victim, number, begun=begun(number, kills.RENAMES))


def _faults(root: Path, done: Done, names: tuple[str, ...]) -> Iterator[faults.Tried]:
    mounts = faults.mountable()
    if not mounts:
        click.echo("disks are left as they are: mounting takes root here", err=True)
    for victim in kills.victims(names, root):
        for fault in faults.every(mounts):
            if (victim.command.name, fault.name) not in done:
                yield faults.attempt(victim.command, victim.root, fault)
        prints = () if victim.command.name == "device setup" else ("--json",)
        yield faults.stdout_full(victim.command, victim.root, prints)


def _soak(root: Path, done: Done, runners: tuple[str, ...], runs: int) -> Iterator[dict[str, Any]]:
    named = os.environ.get("EDGEVIT_DATA")
    for model, share in SOAKED.items():
        images = root / f"{model}.npy"
        for runner in runners:
            if (model, runner) in done:
                continue
            bundle = soak.build(model, runner.split(",")[0], root / model)
            if not images.exists():
                soak.decode(bundle, Path(named) if named else None, images, runs)
            yield {"model": model, **soak.to_row(soak.soak(bundle, runner, images, runs=max(1, int(runs * share))))}


if __name__ == "__main__":
    main()
