"""What it is worth that a Program's work follows the image: cost per image, and every decision frozen at the same cost.

    python -m benchmarks.adaptivity --run NAME=DIR/program --images imagenet-val-1000.tar --original DIR/program

Each run is a Program with gates, or merges whose number follows the image. It answers labelled images one by one; then
every gate is set to its most frequent value and every point merges its mean number of pairs, as
`edgevit.compress.adaptivity.freeze` does, and the frozen Program answers them again, in float. Several calls with one
`-o` add to the same table, each row as soon as it is there. Writes adaptivity.json, adaptivity.md and adaptivity.png.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.kept import read_rows
from edgevit.compress.adaptivity import Adaptivity, measure_adaptivity
from edgevit.compress.gate.judge import answers
from edgevit.images.image_set import TESTED, load_images, number_labels
from edgevit.program.macs import total_macs
from edgevit.program.original import uncompressed
from edgevit.program.program import Program, load_program
from edgevit.util import strict_json
from edgevit.util.strict_json import dumps, write_atomic

BINS = 40  # of the histogram, from 0 to all of the original's MACs


@dataclass(frozen=True, kw_only=True)
class Row:
    """One Program: what `Adaptivity` says, and how many images cost so many MACs (`BINS` bins from 0 to 1)."""

    name: str
    source: str
    original_top1: float | None
    histogram: tuple[int, ...]
    found: Adaptivity


Ask = Callable[[np.ndarray], np.ndarray]  # images to the original's logits


def asked_once(original: Program) -> Ask:
    """The original's answers to images, kept for the next Program that is asked the same ones."""
    kept: dict[bytes, np.ndarray] = {}

    def ask(images: np.ndarray) -> np.ndarray:
        key = hashlib.blake2b(images.data).digest()
        if key not in kept:
            kept[key] = answers(original, images, description="original").logits
        return kept[key]

    return ask


def measure(name: str, program: Program, path: Path, limit: int | None, original: Ask | None) -> Row:
    """Answer the images with the Program and its frozen form, and compare them with the original."""
    images = number_labels(
        load_images(path, program.spec.image, limit=limit, labelled=True, splits=TESTED), program.spec
    )
    whole = total_macs(uncompressed(program.spec))
    found = answers(program, images.images, description=name)
    before = None if original is None else original(images.images)
    told = measure_adaptivity(program, images.images, found, whole_macs=whole, labels=images.labels, original=before)
    if told is None:
        raise click.UsageError(f"{name} costs the same for every image: it has no gates and no thresholds of tokens.")
    labels = images.labels
    shares = found.image_macs / whole
    top1 = None if before is None or labels is None else float((before.argmax(axis=1) == labels).mean())
    return Row(
        name=name,
        source=path.name,
        original_top1=top1,
        histogram=tuple(np.histogram(shares.clip(0, 1), BINS, (0, 1))[0].tolist()),
        found=told,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "# What it is worth that work follows the image",
        "",
        "`python -m benchmarks.adaptivity`",
        "",
        "Frozen: every gate at its most frequent value and every point with its mean number of pairs, for all images, "
        "at the mean cost of the Program that decides (`edgevit.compress.adaptivity.freeze`); nothing is trained "
        "again. Cost: MACs as a part of the uncompressed model's. Drift: mean KL divergence from the original, nats. "
        "In float.",
        "",
        "| Program | images | mean cost | 10th to 90th percentile | least, most | gates that vary | points that follow "
        "| top-1 of the original | top-1 | frozen | points | drift | frozen |",
        "| --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        a = row.found
        low, tenth, _, ninetieth, most = a.percentiles
        worth = None if a.top1 is None or a.frozen_top1 is None else 100 * (a.frozen_top1 - a.top1)
        cells = [
            row.name,
            f"{a.images} of {row.source}",
            f"{a.macs:.3f} ({a.frozen_macs:.3f} frozen)",
            f"{tenth:.3f} to {ninetieth:.3f}",
            f"{low:.3f}, {most:.3f}",
            f"{a.varying} of {a.gates}",
            str(a.points),
            _percent(row.original_top1),
            _percent(a.top1),
            _percent(a.frozen_top1),
            "-" if worth is None else f"{worth:+.1f}",
            _nats(a.drift),
            _nats(a.frozen_drift),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """One histogram of the cost per image for each Program, with the cost of its frozen form."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 1, figsize=(8, 2.2 * len(rows)), squeeze=False, sharex=True)
    edges = np.linspace(0, 1, BINS + 1)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.stairs(np.array(row.histogram) / row.found.images, edges, fill=True, alpha=0.6)
        axis.axvline(row.found.frozen_macs, color="k", linestyle="--", label="every decision frozen")
        axis.set_title(f"{row.name}: {row.found.said}".replace("; ", "\n"), fontsize=8)
        axis.set_ylabel("share of images")
    axes[-1, 0].set_xlabel("MACs of an image, of the uncompressed model's")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"command": "python -m benchmarks.adaptivity", "rows": strict_json.to_data(list(rows))}
    write_atomic(folder / "adaptivity.json", dumps(document))
    write_atomic(folder / "adaptivity.md", table(rows))
    draw(rows, folder / "adaptivity.png")


def kept(folder: Path) -> list[Row]:
    """The rows that a folder's adaptivity.json has."""
    path = folder / "adaptivity.json"
    return read_rows(path, Row, "delete it, and name all runs again")


@click.command()
@click.option("--run", "runs", multiple=True, required=True, help="NAME=DIR/program; may be given again.")
@click.option("--images", required=True, type=click.Path(path_type=Path, exists=True), help="Labelled images.")
@click.option("--original", type=click.Path(path_type=Path, exists=True), help="The uncompressed Program.")
@click.option("--limit", type=click.IntRange(1), help="Take so many images.")
@click.option("-o", "--out", default="reports/reference", type=click.Path(path_type=Path, file_okay=False))
def main(runs: tuple[str, ...], images: Path, original: Path | None, limit: int | None, out: Path) -> None:
    """Measure Programs and add them to the table."""
    torch.set_num_threads(1)
    ask = None if original is None else asked_once(load_program(original))
    rows = {row.name: row for row in kept(out)}
    for run in runs:
        name, _, folder = run.partition("=")
        rows[name] = measure(name, load_program(Path(folder)), images, limit, ask)
        write(list(rows.values()), out)
        click.echo(f"{name}: {rows[name].found.said}")


if __name__ == "__main__":
    main()
