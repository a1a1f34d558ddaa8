"""`edgevit device`: the emulated device, set up, listed, removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgevit.cli.ranges import Listed

EPILOG = """\b
Example:
  edgevit device setup qemu
  edgevit profile out/deit --device qemu:cortex-a76 -o a76.json
  edgevit device remove qemu
"""
KIND = click.argument("kind", type=click.Choice(["qemu"]))


def _cpu_names() -> list[str]:
    from edgevit.api.device import ARM_CPUS

    return list(ARM_CPUS)


def _runtime_names() -> list[str]:
    from edgevit.api.device import RUNTIMES

    return list(RUNTIMES)


@click.group(epilog=EPILOG, short_help="Set up, list and remove emulated processors.")
def command() -> None:
    """Set up, list and remove devices that edgevit emulates on this machine."""


@command.command(short_help="Fetch an aarch64 user land and qemu, and try them.")
@KIND
@click.option("--cpu", "cpus", multiple=True, type=Listed(_cpu_names), help="Try it on this processor; repeatable.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    type=Listed(_runtime_names),
    help="Repeatable; a bundle of machine code needs none. Default: what comes with edgevit.",
)
def setup(kind: str, cpus: tuple[str, ...], runtimes: tuple[str, ...]) -> None:
    """Fetch an aarch64 user land and qemu into the user's cache, as the user, and try them (300 MB, a minute)."""
    from edgevit.api.device import DEFAULT, DEFAULT_CPUS, userland
    from edgevit.util.progress import note, say

    made = userland.setup(runtimes or (DEFAULT,), cpus or DEFAULT_CPUS, say=say)
    click.echo(f"{made.emulator_version} with {_contents(made.packages)} in {made.folder}")
    if made.uncounted:
        note(f"no instructions will be counted: {made.uncounted}")
    click.echo(f"Use it with: edgevit profile BUNDLE --device qemu:{(cpus or DEFAULT_CPUS)[0]}")


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_devices(as_json: bool) -> None:
    """Show what is set up, and the processors it can play."""
    from edgevit.api.device import ARM_CPUS, userland
    from edgevit.errors import DeviceError
    from edgevit.util import strict_json

    try:
        made, why = userland.installed(), ""
    except DeviceError as error:
        made, why = None, str(error)
    size = userland.size_bytes(made.folder) if made else 0
    if as_json:
        click.echo(
            strict_json.dumps({"device": _plain(strict_json.to_data(made)), "bytes": size, "cpus": _cpus()}),
            nl=False,
        )
        return
    click.echo(
        f"{made.emulator_version}, {size / 1e6:.0f} MB in {made.folder}: {_contents(made.packages)}" if made else why
    )
    if made:
        click.echo(f"instructions are not counted: {made.uncounted}" if made.uncounted else "instructions are counted")
    for cpu in ARM_CPUS.values():
        click.echo(f"  {'qemu:' + cpu.name:<20} {cpu.sold_as}")


@command.command()
@KIND
def remove(kind: str) -> None:
    """Remove what `setup` made."""
    from edgevit.api.device import userland

    click.echo("removed" if userland.remove() else "nothing was set up")


def _contents(packages: Mapping[str, str]) -> str:
    from edgevit.api.device import RUNTIMES

    shown = ("libc6", "numpy", "pillow", *RUNTIMES)
    return ", ".join(f"{name} {version}" for name, version in packages.items() if name in shown)


def _cpus() -> list[dict[str, Any]]:
    """Return what `--json` tells of every processor."""
    from edgevit.api.device import ARM_CPUS

    return [
        {key: getattr(cpu, key) for key in ("name", "qemu", "part", "features", "sold_as")} for cpu in ARM_CPUS.values()
    ]


def _plain(data: Any) -> Any:
    """Return paths as JSON can hold them."""
    return data and {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
