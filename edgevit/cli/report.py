"""`edgevit report`: what a bundle is and costs, in the terminal, as JSON, or as one page."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Example:
  edgevit report out/deit out/deit.measurement.json --html report.html
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("measurements", type=click.Path(path_type=Path), nargs=-1)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page here.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--force", is_flag=True, help="Replace a page that is there.")
def command(bundle: Path, measurements: tuple[Path, ...], html: Path | None, as_json: bool, force: bool) -> None:
    """Report on BUNDLE (folder or zip) and on MEASUREMENTS of it, the files that `edgevit profile` writes."""
    from edgevit import serial
    from edgevit.bundle.read import open_bundle
    from edgevit.errors import OutputError
    from edgevit.measure.file import read_measurement
    from edgevit.report.view import make_report

    if html and html.exists() and not force:
        raise OutputError(f"{html} exists already; choose another file or pass --force to replace it")
    with open_bundle(bundle) as opened:
        report = make_report(
            opened.manifest, [read_measurement(path) for path in measurements], bundle_sha256=opened.sha256
        )
    if html:
        from edgevit.report.html import render as render_html

        try:
            serial.write_atomic(html, render_html(report))
        except OSError as error:
            raise OutputError(f"cannot write {html}: {error.strerror or error}") from error
    if as_json:
        from edgevit.report.json import render as render_json

        click.echo(render_json(report), nl=False)
    elif html:
        click.echo(f"Written to {html}")
    else:
        from rich.console import Console

        from edgevit.report.table import show

        show(report, Console())
