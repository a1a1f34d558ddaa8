"""Compare builds and measurements, of one model or of several, and hold the others against the first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgevit.api.bundle import Bundle, bundle_path
from edgevit.api.report import is_bundle, write_page
from edgevit.build.preflight import Output, ready
from edgevit.bundle.read import open_bundle
from edgevit.errors import ComparisonError
from edgevit.report.comparison import Comparison, Subject
from edgevit.report.comparison import compare as side_by_side
from edgevit.report.comparison_forms import as_markdown, render, show
from edgevit.report.differences import bundle_names
from edgevit.report.limits import read_limit
from edgevit.schema.measurement import Measurement
from edgevit.schema.measurement_file import read_measurement
from edgevit.util import atomic, strict_json
from edgevit.util.progress import warn

__all__ = ["Comparison", "as_markdown", "compare", "set_side_by_side", "show", "to_json", "undecided"]


def compare(
    first: Bundle | Measurement | str | Path,
    *others: Bundle | Measurement | str | Path,
    fail_if: Sequence[str] = (),
    html: str | Path | None = None,
    force: bool = False,
) -> Comparison:
    """Set builds and devices side by side: what changed first, and what cannot be compared.

    Args:
        first: what the others are held against: a bundle, or a measurement of one.
        others: bundles and measurements; a measurement of a given bundle fills its column, others have their own.
        fail_if: limits such as "latency>+5%", "size>8MB" or "top1<-1pt"; see `Comparison.crossed`.
        html: file to write one self-contained page to (default: none).
        force: replace a page that is there.

    Raises:
        BundleError: not a bundle or a measurement.
        ComparisonError: fewer than two of them, one twice, no limit, or a limit on what is not known or was taken under
            other conditions (the page is written all the same).
        OutputError: the page is there already, or cannot be written.

    Example:
        >>> built = edgevit.build(program, target="my-board.toml", calibration="photos/", output="out/demo")
        >>> comparison = edgevit.compare("out/tiny", built, fail_if=["size>1GB"])
        >>> [column.name for column in comparison.columns], len(comparison.crossed)
        (['tiny', 'demo'], 0)
    """
    made = set_side_by_side(first, *others, fail_if=fail_if, html=html, force=force)
    if error := undecided(made):
        raise error
    return made


def set_side_by_side(
    first: Bundle | Measurement | str | Path,
    *others: Bundle | Measurement | str | Path,
    fail_if: Sequence[str] = (),
    html: str | Path | None = None,
    force: bool = False,
) -> Comparison:
    """Compare as `compare` does, but let limits be undecided: for whoever shows the comparison first."""
    limits = [read_limit(text) for text in fail_if]
    page = None if html is None else Path(html)
    if page is not None:
        ready([Output(path=page, option="--html", folder=False)])
        atomic.refuse_existing(page, "page", force=force)
    made = side_by_side(_subjects((first, *others)), limits)
    if page is not None:
        write_page(page, render(made), force=force)
    return made


def undecided(comparison: Comparison) -> ComparisonError | None:
    """Return what to raise where a limit is on what is not known or cannot be compared; crossed ones are said too."""
    if not comparison.undecided:
        return None
    said = [f"{each.limit}: {each.why}" for each in comparison.undecided]
    said += [f"{each.limit} is crossed: {each.column} has {each.value}" for each in comparison.crossed]
    return ComparisonError("; ".join(said))


def to_json(comparison: Comparison) -> str:
    """Return stable JSON text."""
    return strict_json.dumps(comparison)


def _subjects(given: Sequence[Bundle | Measurement | str | Path]) -> list[Subject]:
    """Return a column per bundle and measurement of it, and one per measurement of a bundle that is not given."""
    paths = [bundle_path(each) for each in given if not isinstance(each, Measurement) and _is_bundle(each)]
    names = dict(zip(map(str, paths), bundle_names(paths), strict=True))
    with ExitStack() as stack:
        bundles = {str(path): stack.enter_context(open_bundle(path)) for path in paths}
        measured = {str(i): _measurement(each) for i, each in enumerate(given) if not _is_bundle(each)}
        seen: dict[str, str] = {}
        for path, bundle in bundles.items():
            if bundle.sha256 in seen:
                raise ComparisonError(
                    f"{path} is {seen[bundle.sha256]} once more (the same manifest); give another one"
                )
            seen[bundle.sha256] = path
        if len(paths) > len(bundles):
            raise ComparisonError("one bundle is given twice; give another one")
        found: list[Subject] = []
        for index, each in enumerate(given):
            if _is_bundle(each):
                assert not isinstance(each, Measurement)
                path = str(bundle_path(each))
                mine = [m for m in measured.values() if m.bundle_sha256 == bundles[path].sha256]
                found += _columns(names[path], Subject(name=names[path], manifest=bundles[path].manifest), mine)
            elif measured[str(index)].bundle_sha256 not in seen:
                _note_other_build(measured[str(index)], [bundle.manifest.name for bundle in bundles.values()])
                found.append(Subject(name=_file_name(each, measured[str(index)]), measurement=measured[str(index)]))
        return found


def _note_other_build(measured: Measurement, given: Sequence[str]) -> None:
    """Say so where a measurement has a column of its own that looks like one of a given bundle's."""
    if measured.bundle in given:
        warn(
            f"a measurement is of another build of {measured.bundle} ({measured.bundle_sha256[:12]}) than the one "
            "given, so it has a column of its own; run `edgevit profile` on this one"
        )


def _columns(name: str, bundle: Subject, measured: Sequence[Measurement]) -> list[Subject]:
    if len(measured) < 2:
        return [Subject(name=name, manifest=bundle.manifest, measurement=measured[0] if measured else None)]
    return [
        Subject(name=f"{name} on {each.environment.cpu} ({index})", manifest=bundle.manifest, measurement=each)
        for index, each in enumerate(measured, start=1)
    ]


def _is_bundle(each: Bundle | Measurement | str | Path) -> bool:
    return isinstance(each, Bundle) or (isinstance(each, str | Path) and is_bundle(Path(each)))


def _measurement(each: Bundle | Measurement | str | Path) -> Measurement:
    assert not isinstance(each, Bundle)
    return each if isinstance(each, Measurement) else read_measurement(Path(each))


def _file_name(each: Bundle | Measurement | str | Path, measurement: Measurement) -> str:
    return strict_json.utf8(Path(each).stem) if isinstance(each, str | Path) else measurement.bundle
