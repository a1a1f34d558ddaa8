"""The rows of benchmarks/compression_curve.py: kept on disk one by one, and drawn as a table and a picture."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.kept import read_rows, read_table
from edgevit.util.strict_json import dumps, write_atomic


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured configuration. `macs` is the mean per image as a fraction of the dense model's."""

    model: str
    method: str
    prune: float
    gate: float
    macs: float
    top1: float
    standard_error: float
    agreement: float
    divergence: float
    open_branches: float
    seconds: float
    note: str = ""


ANEW = "run without --resume"


class OutOfTime(Exception):
    """The time that --minutes allows has passed."""


class Book:
    """The rows measured so far, on disk after every one."""

    def __init__(self, path: Path, settings: dict[str, object], resume: bool, end: float | None) -> None:
        self.path, self.settings, self.end, self.rows = path, settings, end, list[Row]()
        if resume and path.exists():
            if read_table(path, ANEW).get("settings") != settings:
                raise click.ClickException(f"{path} was measured with other settings; {ANEW}")
            self.rows = read_rows(path, Row, ANEW)
            if unknown := {r.method for r in self.rows} - set(ORDER):
                raise click.ClickException(f"{path} has rows of unknown methods, {', '.join(sorted(unknown))}; {ANEW}")

    def has(self, model: str, method: str, prune: float, gate: float) -> bool:
        """Whether the row is there already. Raises OutOfTime where it is not and no time is left to measure it."""
        found = any((r.model, r.method, r.prune, r.gate) == (model, method, prune, gate) for r in self.rows)
        if not found and self.end is not None and time.monotonic() > self.end:
            raise OutOfTime
        return found

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_atomic(self.path, dumps({"settings": self.settings, "rows": [asdict(r) for r in self.rows]}))
        click.echo(
            f"{row.model} {row.method:28s} prune {row.prune:.0%} gate {row.gate:.0%}: MACs {row.macs:.1%} "
            f"top-1 {row.top1:.1%} agreement {row.agreement:.1%} KL {row.divergence:.3f} ({row.seconds:.0f} s)"
        )


def table(book: Book) -> str:
    """The rows as a markdown document, one table per model."""
    s = book.settings
    lines = [
        "# Compression without labels: accuracy against MACs",
        "",
        f"`{s['command']}`",
        "",
        f"Top-1 on {s['images']} images of ImageNet's validation set (first 1000 files, 224 x 224 centre crop, "
        f"float32, standard error up to {max(r.standard_error for r in book.rows):.1%}); {s['calibration']} unlabelled "
        "images of another set for calibration. MACs are those the lowered graph executes, mean per image, as a share "
        "of the dense model's. Agreement: the same top-1 class as the dense model. KL: nats per image from it.",
        "",
        "- prune, plain: the planned units cut out. prune, compensated: the same units, with what they contributed "
        "folded into the output linears (closed form). prune, repaired: and those fitted again in sequence (default).",
        "- gates: gates that learned, or branches closed one by one, whichever drifts less on images kept apart, and "
        "output linears fitted again under their decisions (default). random: for every image as many branches of the "
        "dense model skipped, drawn at random, with skip rows or with nothing in their place; mean over seeds.",
    ]
    for model in dict.fromkeys(r.model for r in book.rows):
        lines += ["", f"## {model}", "", "| method | prune | gate | MACs | top-1 | agreement | KL | branches run | |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
        for r in sorted((r for r in book.rows if r.model == model), key=lambda r: (_order(r.method), -r.macs)):
            lines.append(
                f"| {r.method} | {r.prune:.0%} | {r.gate:.0%} | {r.macs:.1%} | {r.top1:.1%} | {r.agreement:.1%} "
                f"| {r.divergence:.3f} | {r.open_branches:.1f} | {r.note} |"
            )
    return "\n".join(lines) + "\n"


ORDER = (
    "dense",
    "prune, repaired",
    "prune, compensated",
    "prune, plain",
    "gates",
    "random, skip rows",
    "random, plain",
    "prune and gates",
)


def _order(method: str) -> int:
    return ORDER.index(method)


def plot(book: Book, path: Path) -> None:
    """Top-1 against MACs, one panel per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(r.model for r in book.rows))
    figure, axes = plt.subplots(1, len(models), figsize=(6 * len(models), 4.5), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        rows = [r for r in book.rows if r.model == model]
        dense = [r for r in rows if r.method == "dense"]
        for method in ORDER[1:]:
            own = [r for r in rows if r.method == method]
            points = sorted([*own, *(dense if own and method != "prune and gates" else [])], key=lambda r: -r.macs)
            style = "s" if method == "prune and gates" else ("o--" if "plain" in method or "random" in method else "o-")
            axis.plot([100 * r.macs for r in points], [100 * r.top1 for r in points], style, label=method, markersize=4)
        axis.set_title(model)
        axis.set_xlabel("MACs, % of dense")
        axis.grid(alpha=0.3)
        axis.invert_xaxis()
    axes[0][0].set_ylabel("top-1, %")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
