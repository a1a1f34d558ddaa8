"""`edgevit models`: what works, and with --all why the rest does not."""

from __future__ import annotations

import click

EXAMPLE = """\b
Examples:
  edgevit models deit
  edgevit models --all relpos
  edgevit models --json | jq '.models[] | select(.macs < 2e9) | .name'
"""


@click.command("models", epilog=EXAMPLE, short_help="List the models that can be built from.")
@click.argument("part", default="")
@click.option("--all", "refused", is_flag=True, help="Also show the models that do not fit, with the reason.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(part: str, refused: bool, as_json: bool) -> None:
    """List the models that `edgevit build` takes: PART, if given, must be in the name.

    The table was made by really trying every name of timm, and T2T-ViT's. MACs are of one image, all tokens counted.
    """
    import difflib

    from edgevit.api.models import models
    from edgevit.util import strict_json

    asked = models(part, refused=refused)
    if as_json:
        click.echo(strict_json.dumps(asked), nl=False)
        return
    rows, catalogue = asked.models, models(refused=True)
    width = max((len(e.name) for e in rows), default=4)
    if any(e.fits for e in rows):
        click.echo(f"{'name':{width}}  {'input':>9}  {'params':>8}  {'MACs':>8}  {'classes':>7}  license")
    for e in rows:
        if e.fits:
            numbers = f"{e.height}x{e.width:<4}".rjust(9)
            size = f"{e.parameters / 1e6:>7.1f}M  {e.macs / 1e9:>7.2f}G  {e.classes or '-':>7}"
            click.echo(f"{e.name:{width}}  {numbers}  {size}  {e.license or '-'}")
        else:
            click.echo(f"{e.name:{width}}  is not supported: {e.reason}")
    fitting = sum(e.fits for e in catalogue.models)
    click.echo(
        f"\n{len(rows)} shown; {fitting} names fit, {len(catalogue.models) - fitting} of timm {catalogue.timm} do not"
    )
    if rows:
        return
    if any(part.lower() in e.name for e in catalogue.models):
        click.echo(
            f"No supported model matches {part!r}; `edgevit models --all {part}` shows the unsupported ones, and why."
        )
        return
    near = difflib.get_close_matches(
        part, [e.name.partition(".")[0] for e in catalogue.models if e.fits], n=6, cutoff=0.4
    )
    click.echo(f"Nothing is called so; nearest names: {', '.join(dict.fromkeys(near)) or 'none'}")
