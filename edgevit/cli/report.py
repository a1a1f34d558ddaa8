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
    from edgevit.api.report import report, show, to_json

    made = report(bundle, *more, html=html, force=force)
    if as_json:
        click.echo(to_json(made), nl=False)
    elif html:
        click.echo(f"Written to {html}")
    else:
        import sys

        from rich.console import Console

        from edgevit.cli.terminal import plain

        show(plain(made), Console(file=getattr(sys.stdout, "styled", sys.stdout)))
