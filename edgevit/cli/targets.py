"""`edgevit targets`: what can be built for, and why each choice was made."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgevit.api.targets import Target

EPILOG = """\b
Examples:
  edgevit targets
  edgevit targets x86-64-avx2-onnxruntime
  edgevit targets host
  edgevit targets my-board.toml --json
  edgevit targets --export rpi5-onnxruntime -o my-board.toml
"""


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the targets that begin so, for a shell that completes a word."""
    from edgevit.api.targets import list_targets

    return [name for name in ("host", *list_targets()) if name.startswith(incomplete)]


@click.command(epilog=EPILOG, short_help="List the devices that can be built for; explain or export one.")
@click.argument("name", required=False, shell_complete=complete_target)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--export",
    metavar="NAME",
    shell_complete=complete_target,
    help="Write the file of a target, to make your own of it.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File of --export (default: NAME.toml).")
def command(name: str | None, as_json: bool, export: str | None, output: Path | None) -> None:
    """List the targets, or explain NAME (a target, a TOML file, or host: this machine's) choice by choice."""
    from edgevit.api import targets as api
    from edgevit.util import strict_json

    if export is not None:
        if name is not None or as_json:
            raise click.UsageError("--export writes a file; give it alone, or with -o.")
        path = api.export_target(export, output)
        build = f"edgevit build --target {shlex.quote(str(path))}"
        click.echo(f"{path}: change what differs on your device, then: {build}")
        return
    if output is not None:
        raise click.UsageError("-o is the file of --export.")
    if name is not None:
        target = api.target(name)
        click.echo(strict_json.dumps(target) if as_json else _explained(target), nl=False)
        return
    targets = api.targets()
    if as_json:
        click.echo(strict_json.dumps(targets), nl=False)
        return
    width = max(len(target.name) for target in targets)
    for target in targets:
        click.echo(f"{target.name:<{width}}  {target.description}")
    click.echo(
        "\n`edgevit targets NAME` explains the choices of one; `--export NAME` writes its file, to make your own."
    )


def _explained(target: Target) -> str:
    lines = [f"{target.name}: {target.description}", f"  needs     {', '.join(target.requires_flags)} ({target.arch})"]
    for key, reason in target.reasons.items():
        value = getattr(target, key)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        lines.append(f"  {key} = {shown}")
        lines.append(click.wrap_text(reason, width=96, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines) + "\n"
