"""What a compressed model may cost, on the command line: shares of the MACs that are left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgevit.cli.ranges import Number
from edgevit.util.progress import note

if TYPE_CHECKING:
    from edgevit.api.label_free import Shares

F = TypeVar("F", bound=Callable[..., Any])
SHARE = Number(0, 1, min_open=True)


def budget_options(command: F) -> F:
    """Add --macs and --static, and their older forms --prune and --gate, to a command."""
    options = (
        click.option("--macs", type=SHARE, help="Share of the MACs that is left: tokens are merged (default: 1)."),
        click.option("--static", type=SHARE, help="Prune to this share of the MACs, and gate down to --macs."),
        click.option("--prune", type=Number(0, 1, max_open=True), help="Share to remove: 0.3 is --static 0.7."),
        click.option("--gate", type=SHARE, help="--macs as a share of --static, or of 1 where that is not given."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_budget(options: dict[str, Any]) -> Shares:
    """Take these options out of a command's; what --prune and --gate are in terms of the others is shown on stderr."""
    from edgevit.api.label_free import shares

    macs, static, prune, gate = (options.pop(name) for name in ("macs", "static", "prune", "gate"))
    for old, new, both in (("--prune", "--static", (prune, static)), ("--gate", "--macs", (gate, macs))):
        if None not in both:
            raise click.UsageError(f"{old} is another way to say {new}; give one of them.")
    if prune is not None:
        static = 1.0 - prune
        note(f"--prune {prune:g} is --static {static:g}")
    if gate is not None:
        alone, static = static is None, 1.0 if static is None else static
        macs = gate * static
        note(f"--gate {gate:g} is --macs {macs:g}{' --static 1' if alone else ''}")
    found = shares(1.0 if macs is None else macs, static)
    # What was given is kept to the last digit: a bundle's recipe holds it.
    return replace(found, prune=found.prune if prune is None else prune, gate=found.gate if gate is None else gate)
