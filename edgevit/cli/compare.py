"""`edgevit compare`: builds and devices side by side, what changed first, with limits for a script."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Examples:
  edgevit compare out/before out/after before.json after.json
  edgevit compare out/deit out/vit --markdown > comment.md
  edgevit compare pi4.json pi5.json
  edgevit compare out/before out/after before.json after.json --fail-if 'latency>+5%' --fail-if 'top1<-1pt'

\b
The first is what the others are held against. Measurements of a given bundle fill its column. A limit is a figure, an
operator and an amount; with a sign it is a change against the first:
  latency>20ms   size>8MB   top1<70%          values
  latency>+5%    memory>+100kB   top1<-1pt    changes (pt: points of a share)
Figures: latency p95 latency_all_open load process memory size top1 agreement lost macs macs_all_open parameters
A crossed limit ends with exit code 41. What is not known, or was taken under other conditions (another device, other
images), is no figure to hold against a limit, and ends with exit code 40 and with what differs.
"""


@click.command(epilog=EPILOG, short_help="Set builds and measurements side by side, with limits for CI.")
@click.argument("first", metavar="BUNDLE|MEASUREMENT", type=click.Path(path_type=Path))
@click.argument("others", metavar="BUNDLE|MEASUREMENT...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--fail-if", metavar="LIMIT", multiple=True, help="Fail where this holds of one of the others; repeatable."
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one self-contained page here.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--force", is_flag=True, help="Replace a page that is there.")
def command(
    first: Path,
    others: tuple[Path, ...],
    fail_if: tuple[str, ...],
    html: Path | None,
    markdown: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Set builds (folders or zips) and measurements side by side, of one model or of several."""
    from edgevit.api.compare import as_markdown, set_side_by_side, show, to_json, undecided
    from edgevit.errors import RegressionError

    if markdown and as_json:
        raise click.UsageError("--markdown and --json are two forms of one answer; give one of them.")
    made = set_side_by_side(first, *others, fail_if=fail_if, html=html, force=force)
    if as_json:
        click.echo(to_json(made), nl=False)
    elif markdown:
        click.echo(as_markdown(made), nl=False)
    elif html:
        click.echo(f"Written to {html}")
    else:
        import sys

        from rich.console import Console

        from edgevit.cli.terminal import plain

        show(plain(made), Console(file=getattr(sys.stdout, "styled", sys.stdout)))
    if error := undecided(made):
        error.answered = True  # the comparison is printed, and says it too
        raise error
    if made.crossed:
        told = "; ".join(f"{each.limit}: {each.column} has {each.value}" for each in made.crossed)
        raise RegressionError(f"{len(made.crossed)} of {len(made.verdicts)} limits crossed: {told}")
