"""`edgevit doctor`: what this machine can build and run, and how to get what is missing."""

from __future__ import annotations

import click

EPILOG = """\b
Example:
  edgevit doctor --json
"""


@click.command(epilog=EPILOG, short_help="Say what this machine can build and run, and what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Say what this machine can build and run, what is missing, and the command that installs it."""
    from edgevit.api.doctor import diagnose
    from edgevit.util import strict_json

    health = diagnose()
    if as_json:
        click.echo(strict_json.dumps(health), nl=False)
        return
    memory = f"{health.memory_bytes / 1e9:.1f} GB memory" if health.memory_bytes else "memory unknown"
    click.echo(f"edgevit {health.edgevit}, Python {health.python}, {health.arch} ({', '.join(health.cpu_flags)})")
    click.echo(f"{memory}, {health.disk_free_bytes / 1e9:.1f} GB disk free, EDGEVIT_DATA: {health.data or 'not set'}")
    click.echo("\nPackages")
    for package in health.packages:
        click.echo(f"  {package.name:<14} {package.version or 'missing: ' + package.install}")
    click.echo("\nEmulated ARM processors")
    for tool in health.emulation:
        click.echo(f"  {tool.name:<15} {tool.version or 'missing: ' + tool.install}")
    click.echo("\nTargets")
    width = max(len(target.name) for target in health.targets)
    for target in health.targets:
        state = "builds" if target.builds else "cannot be built"
        click.echo(f"  {target.name:<{width}}  {state}{', runs as on a device' if target.runs_as_device else ''}")
        for remark in target.remarks:
            click.echo(f"  {'':<{width}}    {remark}")
    able = "yes" if health.compress else "no: " + "pip install 'edgevit[train]'"
    click.echo(f"\nPruning, gating and named models: {able}")
