"""What a bundle says to whoever receives it: README.md, and requirements.txt for its runner.

Both are made of the manifest and of the little that only the runtime knows (`Guide`); equal manifests give equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from edgevit.program.original import when_compressed
from edgevit.schema.budget import BUDGETS, BudgetCheck, check_budgets
from edgevit.schema.claims import Fraction
from edgevit.schema.manifest import AccuracyRow, Manifest
from edgevit.schema.points import OperatingPoint, effort_text

README, REQUIREMENTS = "README.md", "requirements.txt"
# What `runner/run.py` needs beside the runtime.
RUNNER_NEEDS = ("numpy>=1.26,<3", "pillow>=10.3")
RELEASE = re.compile(r"[0-9]+(?:\.(?:post)?[0-9]+)*")  # some versions tell their commit behind it
_CROPS = {
    "center": "its short side is brought to {short} pixels, then the middle {size} are cut out",
    "squash": "it is resized to {squash} whatever its shape, then the middle {size} are cut out",
    "border": "its long side is brought to {short} pixels, then it is padded to {size} with the mean colour",
}
_METRICS = {"top1": "top-1", "top5": "top-5", "agreement": "agreement"}


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What only the runtime's folder knows of how a bundle is used.

    Attributes:
        packages: Python packages that `runner/run.py` loads the model with, and the licence of each; their versions are
            in the manifest's tools.
        licences: licence of shipped files that are not edgevit's own, by how their path begins.
        linking: Markdown on how the model is run from a program of one's own, a Jinja template of the manifest `m`.
        example: files of such a program, templates of the same kind, by their path inside the bundle.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    linking: str = ""
    example: Mapping[str, str] = field(default_factory=dict)


def requirements(manifest: Manifest, guide: Guide) -> str:
    """Return what pip installs to run `runner/run.py`: the runtime in the version that the bundle was verified with."""
    found = ((package, RELEASE.match(manifest.tools.get(package, ""))) for package in guide.packages)
    pinned = [f"{package}=={release[0]}" for package, release in found if release]
    return "\n".join([*pinned, *RUNNER_NEEDS, ""])


def example(manifest: Manifest, guide: Guide) -> dict[str, str]:
    """Return the files of a program that runs the model, by their path inside the bundle."""
    named = _named(manifest)
    return {
        path: _environment().from_string(text).render(m=manifest, named=named) for path, text in guide.example.items()
    }


def _named(manifest: Manifest) -> list[OperatingPoint]:
    return [point for point in manifest.points if point.name is not None]


def readme(manifest: Manifest, guide: Guide) -> str:
    """Return the README of a bundle that holds the manifest's files beside it."""
    return (
        _environment()
        .get_template(f"{README}.jinja")
        .render(
            m=manifest,
            facts=_facts(manifest),
            accuracy=[_accuracy(row) for row in manifest.accuracy],
            points=_points(manifest.points),
            named=[point.name for point in _named(manifest)],
            budgets=[_budget(check) for check in check_budgets(manifest)],
            open_claims=[claim for claim in manifest.claims if claim.held is None],
            resize=_resize(manifest),
            pixels=_pixels(manifest),
            linking=_environment().from_string(guide.linking).render(m=manifest).strip(),
            licence=licence_of(manifest.origin),
            runtime=guide.packages,
            logits=next(output for output in manifest.outputs if output.name == "logits"),
            compressed=_compressed(manifest),
        )
    )


@lru_cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(loader=loader, autoescape=False, undefined=jinja2.StrictUndefined, **options)
    environment.filters |= {"plain": plain, "megabytes": _megabytes}
    return environment


def plain(text: object) -> str:
    """Return somebody else's text so that it stays text in a table of Markdown, on one line."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", shown)


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the rows of the first table: what it is, for which device, what it costs."""
    target, macs, bound = manifest.target, manifest.macs, manifest.bound
    flags = ", ".join(flag.replace("|", " or ") for flag in target.requires_flags)
    loaded = manifest.sizes.model_bytes
    cost = f"{_millions(macs.all_open)} million multiply-accumulates"
    if manifest.effort is not None:
        cost = f"{_millions(macs.expected)} million multiply-accumulates expected, {_millions(macs.all_open)} at most"
    if macs.dense > (macs.all_open if manifest.effort is None else macs.expected):
        cost += f" ({_millions(macs.dense)} before compression)"
    steps = manifest.original.steps if manifest.original else ()
    memory = f"{bound.bound_bytes / 1e6:.1f} MB, {'proven' if bound.proven else 'estimated'}: {bound.covers}"
    return [
        ("device", f"{target.description} ({target.arch}{f', CPU flags {flags}' if flags else ''})"),
        ("runtime", f"{manifest.backend} {manifest.tools.get(manifest.backend, '')}".strip()),
        ("size", f"{_megabytes(loaded)} to load (dense float weights: {_megabytes(manifest.sizes.float_bytes)})"),
        ("cost of an image", cost),
        *([("compression", "; ".join(steps))] if steps else []),
        ("memory", memory),
    ]


def _accuracy(row: AccuracyRow) -> tuple[str, ...]:
    whose = {"bundle": "this bundle", "compressed": "compressed model in float", "original": "original model in float"}
    what = _METRICS[row.metric]
    if row.metric == "agreement":
        what += " with the original" if row.against == "original" else " with the float model it was quantized from"
    return whose[row.model], what, f"{row.value:.1%}", f"{row.low:.1%} to {row.high:.1%}", str(row.images)


def _compressed(manifest: Manifest) -> str:
    """Return what compression cost on labelled images, as a sentence; nothing where top-1 here or nobody tells."""
    if any((row.model, row.metric) == ("original", "top1") for row in manifest.accuracy):
        return ""
    classes = next(output.shape[-1] for output in manifest.outputs if output.name == "logits")
    said = when_compressed(manifest.original, classes, labelled=True)
    return f"{said[0].upper()}{said[1:]} (original, then compressed, both in float)." if said else ""


def _points(points: Sequence[OperatingPoint]) -> list[dict[str, str]]:
    """Return a row of words by column for every point; a column that no point has a figure of is left out."""
    columns: dict[str, Callable[[OperatingPoint], str]] = {
        "name": lambda point: point.name or "-",
        "effort": lambda point: effort_text(point.effort),
        "agreement": lambda point: _share(point.agreement),
        "top-1": lambda point: _share(point.top1),
        "million MACs, mean": lambda point: _millions(point.macs),
        "million MACs, most": lambda point: _millions(point.worst_macs),
        "branches that ran": lambda point: f"{point.branches:.1f}",
    }
    unknown = {name for name in ("agreement", "top-1") if all(columns[name](point) == "-" for point in points)}
    return [{name: show(point) for name, show in columns.items() if name not in unknown} for point in points]


def _share(share: Fraction | None) -> str:
    return "-" if share is None else f"{share.value:.1%}"


def _budget(check: BudgetCheck) -> tuple[str, ...]:
    state = {True: "met", False: "not met", None: "not known"}[check.held]
    return (
        BUDGETS[check.key],
        f"{check.limit:g}",
        "-" if check.value is None else f"{check.value:.3g}",
        state,
        check.what,
    )


def _resize(manifest: Manifest) -> str:
    """Return how a picture is brought to the model's size, in words."""
    spec = manifest.input.preprocessing
    sides = int(spec.width / spec.crop_pct), int(spec.height / spec.crop_pct)
    how = _CROPS[spec.crop_mode].format(
        short=sides[0], squash=f"{sides[0]} x {sides[1]}", size=f"{spec.width} x {spec.height} pixels"
    )
    turned = "turned as its EXIF orientation says; " if spec.orientation == "apply" else ""
    return f"{turned}{how} ({spec.interpolation})"


def _pixels(manifest: Manifest) -> str:
    """Return what of a picture's file is taken, with what the manifest says elsewhere."""
    turned = "applied" if manifest.input.preprocessing.orientation == "apply" else "ignored"
    return manifest.input.pixels.replace("as preprocessing.orientation says", turned)


def licence_of(origin: Mapping[str, str]) -> str:
    """Return the licence that was stated for weights; '' where none was."""
    return next((origin[key] for key in ("license", "licence") if key in origin), "")


def _millions(count: float) -> str:
    return f"{count / 1e6:.0f}" if count >= 1e7 else f"{count / 1e6:.2g}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
