"""Report on bundles and on measurements of them: as a value, as text, as JSON, or as one page."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import edgevit.report.notebook  # noqa: F401  a notebook shows reports from now on
from edgevit.api.bundle import Bundle, bundle_path
from edgevit.build.preflight import Output, ready
from edgevit.bundle.read import open_bundle
from edgevit.errors import OutputError
from edgevit.report.devices import assign
from edgevit.report.differences import bundle_names
from edgevit.report.html import render
from edgevit.report.json import render as to_json
from edgevit.report.table import show
from edgevit.report.view import Report, make_report
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.util import atomic, strict_json

__all__ = ["Report", "report", "show", "to_json"]


def report(
    bundle: Bundle | str | Path,
    *others: Bundle | Measurement | str | Path,
    html: str | Path | None = None,
    force: bool = False,
) -> Report:
    """Put a bundle and measurements of it together, or several bundles of one model.

    Args:
        bundle: what the report is of, or the path of its folder or .zip.
        others: measurements, as values or files that `profile` wrote, and more bundles of the same model.
        html: file to write one self-contained page to (default: none).
        force: replace a page that is there.

    Raises:
        BundleError: not a bundle or measurement, of another bundle, or a bundle of another model.
        OutputError: the page is there already, or cannot be written.

    Example:
        >>> report = edgevit.report("out/tiny", "tiny.json", html="tiny.html")
        >>> report.name, len(report.measurements)
        ('tiny', 1)
    """
    page = None if html is None else Path(html)
    if page is not None:
        ready([Output(path=page, option="--html", folder=False)])
        atomic.refuse_existing(page, "page", force=force)
    measured, paths = [], [bundle_path(bundle)]
    for other in others:
        if isinstance(other, Measurement):
            measured.append(other)
        elif isinstance(other, Bundle) or _is_bundle(Path(other)):
            paths.append(bundle_path(other))
        else:
            measured.append(read_measurement(Path(other)))
    made = _made(paths, measured)
    if page is not None:
        _write(page, made, force=force)
    return made


def _is_bundle(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".zip"


def _made(paths: list[Path], measured: list[Measurement]) -> Report:
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in paths]
        first, *rest = assign(bundles, measured)
        return make_report(
            bundles[0].manifest,
            first,
            bundle_sha256=bundles[0].sha256,
            names=bundle_names(paths),
            others=[(each.manifest, found) for each, found in zip(bundles[1:], rest, strict=True)],
        )


def _write(page: Path, made: Report, *, force: bool) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        strict_json.write_atomic(page, render(made), replace=force)
    except OSError as error:
        raise OutputError(f"cannot write {page}: {error.strerror or error}") from error
