"""`edgevit report`: what a bundle is and costs, in the terminal, as JSON, Markdown, a page or a folder of pages."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Example:
  edgevit report out/deit out/deit.measurement.json --html report.html
  edgevit report out/deit deit.json --budget ram=64,latency=20 --html report.html
  edgevit report out/rpi4 out/rpi5 rpi4.json rpi5.json
  edgevit report out/deit out/deit-pruned
  edgevit report out/deit out/vit deit.json vit.json --folder pages     (a page each, and an index)

\b
Several bundles must be built of one model, however they were made: what differs between them comes first, then their
devices side by side; all else is of the first bundle. Pages in a folder, and edgevit compare, take several models.
A page needs no network. Its pictures are saved as PNG, SVG or CSV by buttons below them, or by --figures.
"""


@click.command(epilog=EPILOG, short_help="Show what a bundle is and costs: text, page, JSON, Markdown.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("more", metavar="[BUNDLE]... [MEASUREMENT]...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page here.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Write a page each here, and an index."
)
@click.option("--figures", type=click.Path(path_type=Path), help="Write pictures as SVG and CSV into this new folder.")
@click.option(
    "--budget",
    "budgets",
    metavar="LIMITS",
    multiple=True,
    help="Limits instead of the target's, as for `build`: ram=64,flash=8,latency=20,drop=1 (MB, MB, ms, points).",
)
@click.option("--images", type=click.Path(path_type=Path), help="The measured images, to show the easiest and hardest.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--force", is_flag=True, help="Replace a page that is there.")
def command(
    bundle: Path,
    more: tuple[Path, ...],
    html: Path | None,
    folder: Path | None,
    figures: Path | None,
    images: Path | None,
    budgets: tuple[str, ...],
    markdown: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Report on BUNDLE (folder or zip) and on MEASUREMENTs of it, the files that `edgevit profile` writes."""
    from edgevit.api.report import as_markdown, report, report_folder, show, to_json

    if folder is not None:
        if html or figures or images or budgets or markdown or as_json:
            raise click.UsageError("--folder writes pages of all bundles; give it without another form.")
        click.echo(f"Written to {report_folder(folder, bundle, *more, force=force)}")
        return
    if markdown and as_json:
        raise click.UsageError("--markdown and --json are two forms of one answer; give one of them.")
    made = report(
        bundle, *more, html=html, figures_to=figures, images=images, budgets=",".join(budgets) or None, force=force
    )
    if as_json:
        click.echo(to_json(made), nl=False)
    elif markdown:
        click.echo(as_markdown(made), nl=False)
    elif html or figures:
        click.echo(f"Written to {' and '.join(str(each) for each in (html, figures) if each)}")
    else:
        import sys

        from rich.console import Console

        from edgevit.cli.terminal import plain

        show(plain(made), Console(file=getattr(sys.stdout, "styled", sys.stdout)))
