"""`edgevit report`: what a bundle is and costs, in the terminal, as JSON, or as one page."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Example:
  edgevit report out/deit out/deit.measurement.json --html report.html
  edgevit report out/rpi4 out/rpi5 rpi4.json rpi5.json
  edgevit report out/deit out/deit-pruned

\b
Several bundles must be built of one model, however they were made: what differs between them comes first, then their
devices side by side; all else is of the first bundle.
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("more", metavar="[BUNDLE]... [MEASUREMENT]...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page here.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--force", is_flag=True, help="Replace a page that is there.")
def command(bundle: Path, more: tuple[Path, ...], html: Path | None, as_json: bool, force: bool) -> None:
    """Report on BUNDLE (folder or zip) and on MEASUREMENTs of it, the files that `edgevit profile` writes."""
    from contextlib import ExitStack

    from edgevit.build.preflight import Output, ready
    from edgevit.bundle.read import open_bundle
    from edgevit.errors import OutputError
    from edgevit.report.devices import assign
    from edgevit.report.differences import bundle_names
    from edgevit.report.view import make_report
    from edgevit.schema.measurement_file import read_measurement
    from edgevit.util import atomic, strict_json

    if html:
        ready([Output(path=html, option="--html", folder=False)])
        atomic.refuse_existing(html, "page", force=force)
    others = [path for path in more if path.is_dir() or path.suffix == ".zip"]
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in (bundle, *others)]
        first, *rest = assign(bundles, [read_measurement(path) for path in more if path not in others])
        report = make_report(
            bundles[0].manifest,
            first,
            bundle_sha256=bundles[0].sha256,
            names=bundle_names([bundle, *others]),
            others=[(each.manifest, measured) for each, measured in zip(bundles[1:], rest, strict=True)],
        )
    if html:
        from edgevit.report.html import render as render_html

        try:
            html.parent.mkdir(parents=True, exist_ok=True)
            strict_json.write_atomic(html, render_html(report), replace=force)
        except OSError as error:
            raise OutputError(f"cannot write {html}: {error.strerror or error}") from error
    if as_json:
        from edgevit.report.json import render as render_json

        click.echo(render_json(report), nl=False)
    elif html:
        click.echo(f"Written to {html}")
    else:
        import sys

        from rich.console import Console

        from edgevit.cli.terminal import plain
        from edgevit.report.table import show

        show(plain(report), Console(file=getattr(sys.stdout, "styled", sys.stdout)))
