"""Kills, faults and a soak, reported: `python -m tests.chaos -o reports/reference` writes chaos.md and chaos.json.

EDGEVIT_DATA names a folder of real images to soak with; without it the photographs that ship are taken in turn. Disks
are filled and made read-only by mounts, which takes root or a kernel that lets users make name spaces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
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


@click.command()
@click.option("--moments", default=100, show_default=True, type=click.IntRange(1), help="Random moments per command.")
@click.option("--runs", default=20_000, show_default=True, type=click.IntRange(1), help="Images per runner.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Repeatable; the other reports are kept.")
@click.option("-o", "--out", default="out/chaos", show_default=True, type=click.Path(path_type=Path, file_okay=False))
def main(moments: int, runs: int, only: tuple[str, ...], out: Path) -> None:
    """Try to break edgevit; exits with 1 if something broke."""
    run.prepare()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "chaos.json"
    rows: dict[str, Any] = json.loads(kept.read_bytes()) if only and kept.exists() else {}
    rows["machine"] = cpu_name(Path("/"))
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for part in only or PARTS:
            rows[part] = []
            for row in _rows(part, Path(folder), moments=moments, runs=runs):
                rows[part].append(row)
                click.echo(json.dumps(row))
                write_atomic(kept, dumps(rows))
    write_atomic(out / "chaos.md", markdown(rows))
    click.echo(f"wrote {out / 'chaos.md'}")
    if broke := [row for part in PARTS for row in rows.get(part, ()) if row.get("faults") or row.get("wrong")]:
        raise SystemExit(f"{len(broke)} rows did not hold")


def _rows(part: str, root: Path, *, moments: int, runs: int) -> Iterator[dict[str, Any]]:
    if part == "kills":
        yield from map(dataclasses.asdict, _kills(root, moments))
    elif part == "faults":
        yield from map(dataclasses.asdict, _faults(root))
    else:
        yield from _soak(root, runs)


def _kills(root: Path, moments: int) -> Iterator[kills.Killed]:
    for victim in kills.victims(KILLED, root):
        for index, number in enumerate(kills.SIGNALS):
            yield kills.at_random(victim, number, (moments + index) // len(kills.SIGNALS))
            yield kills.at_renames(victim, number)


def _faults(root: Path) -> Iterator[faults.Tried]:
    mounts = faults.mountable()
    if not mounts:
        click.echo("disks are left as they are: mounting takes root here", err=True)
    for victim in kills.victims(FAULTED, root):
        for fault in faults.every(mounts):
            yield faults.attempt(victim.command, victim.root, fault)
        prints = () if victim.command.name == "device setup" else ("--json",)
        yield faults.stdout_full(victim.command, victim.root, prints)


def _soak(root: Path, runs: int) -> Iterator[dict[str, Any]]:
    named = os.environ.get("EDGEVIT_DATA")
    for model, share in SOAKED.items():
        images = root / f"{model}.npy"
        for runner in soak.RUNNERS:
            bundle = soak.build(model, runner.split(",")[0], root / model)
            if not images.exists():
                soak.decode(bundle, Path(named) if named else None, images, runs)
            yield {"model": model, **soak.to_row(soak.soak(bundle, runner, images, runs=max(1, int(runs * share))))}


if __name__ == "__main__":
    main()
