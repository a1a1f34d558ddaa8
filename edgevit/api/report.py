"""Report on bundles and on measurements of them: as a value, as text, JSON or Markdown, as one page or a folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import edgevit.report.notebook  # noqa: F401  a notebook shows reports from now on
from edgevit.api.bundle import Bundle, bundle_path
from edgevit.api.images import Images, take_images
from edgevit.build.preflight import Output, ready
from edgevit.bundle.read import open_bundle
from edgevit.errors import ImagesError, OutputError, TargetError
from edgevit.report import index
from edgevit.report.comparison import Subject, compare
from edgevit.report.comparison_forms import render as render_comparison
from edgevit.report.devices import assign
from edgevit.report.differences import bundle_names
from edgevit.report.drawn import figures
from edgevit.report.html import render
from edgevit.report.json import render as to_json
from edgevit.report.saved import files
from edgevit.report.summary import as_markdown
from edgevit.report.table import show
from edgevit.report.thumbs import thumbs
from edgevit.report.view import Report, make_report
from edgevit.schema import manifest as schema
from edgevit.schema.budget import BUDGETS, read_budget
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.util import atomic, strict_json
from edgevit.util.paths import is_folder

__all__ = ["Report", "as_markdown", "report", "report_folder", "show", "to_json"]
INDEX, COMPARISON = "index.html", "compare.html"
MOST_IMAGES = 100_000


def report(
    bundle: Bundle | str | Path,
    *others: Bundle | Measurement | str | Path,
    html: str | Path | None = None,
    figures_to: str | Path | None = None,
    images: Images | None = None,
    budgets: Mapping[str, float] | str | None = None,
    force: bool = False,
) -> Report:
    """Put a bundle and measurements of it together, or several bundles of one model.

    Args:
        bundle: what the report is of, or the path of its folder or .zip.
        others: measurements, as values or files that `profile` wrote, and more bundles of the same model.
        html: file to write one self-contained page to (default: none).
        figures_to: new or empty folder for every picture as SVG and its figures as CSV (default: none).
        images: those that were measured, to show the easiest and the hardest of them (default: none are shown).
        budgets: limits instead of the target's: "ram_mb", "flash_mb", "latency_ms", "drop_points" -> the most allowed;
            or the same as text, "ram=64,latency=20".
        force: replace a page that is there.

    Raises:
        BundleError: not a bundle or measurement, of another bundle, or a bundle of another model.
        TargetError: a budget that there is not, or no number above 0.
        ImagesError: the images are not those that were measured.
        OutputError: the page is there already, the folder is not empty, or one of them cannot be written.

    Example:
        >>> report = edgevit.report("out/tiny", "tiny.json", html="tiny.html")
        >>> report.name, len(report.measurements)
        ('tiny', 1)
    """
    page, folder = (None if each is None else Path(each) for each in (html, figures_to))
    if page is not None:
        ready([Output(path=page, option="--html", folder=False)])
        atomic.refuse_existing(page, "page", force=force)
    if folder is not None:
        _require_empty(folder)
    limited = read_budget(budgets) if isinstance(budgets, str) else budgets or {}
    paths, measured = _given((bundle, *others))
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in paths]
        bundles[0] = _limited(bundles[0], limited)
        made = _with_images(_made(bundles, bundle_names(paths), measured), bundles[0], images)
    if page is not None:
        write_page(page, render(made), force=force)
    if folder is not None:
        for name, content in files(figures(made)):
            write_page(folder / name, content, force=False)
    return made


def report_folder(folder: str | Path, *given: Bundle | Measurement | str | Path, force: bool = False) -> Path:
    """Write a page per bundle into a folder, with an index and, of several, what differs; return the index.

    Args:
        folder: where; it is made.
        given: bundles, of one model or of several, and measurements of them.
        force: replace pages that are there.

    Raises:
        BundleError: not a bundle or measurement, or a measurement of none of the bundles.
        OutputError: a page is there already, or cannot be written.
    """
    paths, measured = _given(given)
    names = bundle_names(paths)
    pages = _page_names(names)
    ready([Output(path=Path(folder), option="--folder", folder=True)])
    for page in (*pages, INDEX, COMPARISON):
        atomic.refuse_existing(Path(folder) / page, "page", force=force)
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in paths]
        sorted_out = assign(bundles, measured)
    entries, subjects = [], []
    for name, page, bundle, found in zip(names, pages, bundles, sorted_out, strict=True):
        write_page(Path(folder) / page, render(_made([bundle], [name], found)), force=force)
        first = found[0] if found else None
        entries.append(index.Entry(name=name, file=page, manifest=bundle.manifest, measurement=first))
        subjects.append(Subject(name=name, manifest=bundle.manifest, measurement=first))
    several = len(subjects) > 1
    if several:
        write_page(Path(folder) / COMPARISON, render_comparison(compare(subjects)), force=force)
    write_page(Path(folder) / INDEX, index.render(entries, COMPARISON if several else None), force=force)
    return Path(folder) / INDEX


def _page_names(names: Sequence[str]) -> list[str]:
    """Return a file for every build, none of them another's or one of the folder's own."""
    found: list[str] = []
    for name in names:
        plain, number = name.replace("/", "-"), 1
        page = f"{plain}.html"
        while page.lower() in (INDEX, COMPARISON, *(other.lower() for other in found)):
            number += 1
            page = f"{plain}-{number}.html"
        found.append(page)
    return found


def is_bundle(path: Path) -> bool:
    """Return whether a path names a bundle, a folder or zip, and not a measurement's file."""
    return is_folder(path) or path.suffix == ".zip"


def write_page(page: Path, content: str, *, force: bool) -> None:
    """Write a page, all of it or nothing.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write_atomic(page, content, replace=force)
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror or error}") from error


def _given(given: tuple[Bundle | Measurement | str | Path, ...]) -> tuple[list[Path], list[Measurement]]:
    """Return the bundles' paths and the measurements among what was given."""
    measured: list[Measurement] = []
    paths: list[Path] = []
    for each in given:
        if isinstance(each, Measurement):
            measured.append(each)
        elif isinstance(each, Bundle) or is_bundle(Path(each)) or not paths:  # what comes first is what it is of
            paths.append(bundle_path(each))
        else:
            measured.append(read_measurement(Path(each)))
    return paths, measured


def _made(bundles: list[schema.Bundle], names: list[str] | tuple[str, ...], measured: list[Measurement]) -> Report:
    first, *rest = assign(bundles, measured)
    return make_report(
        bundles[0].manifest,
        first,
        bundle_sha256=bundles[0].sha256,
        names=names,
        others=[(each.manifest, found) for each, found in zip(bundles[1:], rest, strict=True)],
    )


def _limited(bundle: schema.Bundle, budgets: Mapping[str, float]) -> schema.Bundle:
    """Return the bundle with these budgets of its target."""
    for key, value in budgets.items():
        if key not in BUDGETS or not math.isfinite(value) or value < 0 or (value == 0 and key != "drop_points"):
            raise TargetError(f"budget {key}={value:g}: allowed are {', '.join(BUDGETS)}, each a number above 0")
    target = dataclasses.replace(bundle.manifest.target, **dict(budgets))  # type: ignore[arg-type]
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, target=target))


def _with_images(made: Report, bundle: schema.Bundle, images: Images | None) -> Report:
    """Return the report with pictures of the easiest and the hardest of the images that were measured."""
    if images is None:
        return made
    if not made.measurements or len(made.measurements[0].gates) != made.measurements[0].images.count:
        raise ImagesError("images are shown by what they cost, and no measurement says it; profile the bundle first")
    first = made.measurements[0]
    taken = take_images(images, bundle.manifest.input.preprocessing, limit=first.images.count)
    if taken.digest != first.images.digest:
        raise ImagesError(
            f"the images ({taken.digest[:12]}) are not those that were measured ({first.images.digest[:12]}); "
            "give what edgevit profile was given"
        )
    return dataclasses.replace(made, thumbs=thumbs(taken.images, first))


def _require_empty(folder: Path) -> None:
    ready([Output(path=folder, option="--figures", folder=True)])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty; give a new folder for the figures, or empty it")
