"""`edgevit profile`: what a bundle costs on this machine, or on a board, on real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgevit.cli.board import board_options, run_options

EPILOG = """\b
Example:
  edgevit profile out/deit --images photos/ --runs 700
  edgevit report out/deit out/deit.measurement.json
  edgevit profile out/deit --images photos/ --against deit_tiny_patch16_224 --against-weights deit.safetensors
  edgevit profile out/deit --images photos/ --effort fast -o fast.json
  edgevit profile out/deit --images photos/ --device ssh://pi@raspberrypi.local --cpus 2-3 -o pi.json
  edgevit profile out/deit --device qemu:cortex-a76 -o a76.json

\b
A board needs a login by key, sh and tar, and Python 3.11 or newer with numpy and the bundle's runtime; for machine code
glibc and libgcc instead. edgevit copies the bundle into a temporary folder there, runs as the user who logs
in, and removes everything, also when it is stopped. Machine code is a program: profile only bundles that you trust.
Here too the model runs in a process of its own, within the limits on time and memory of docs/limits.md.
The process memory and loading time of machine code are those of its C++ runner, here too.

\b
Without a board, qemu:cortex-a76 (and others, see edgevit device list) runs it on an emulated processor: results,
executed instructions, memory and an estimated range of cycles, never times. It runs up to 8 images with the bundle's
own runner, so only profile bundles that you trust so; set it up with: edgevit device setup qemu
"""


@click.command(epilog=EPILOG, short_help="Measure latency, gates and memory of a bundle on real images.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder, .tar, .zip or image file of real images; without it the bundle's golden inputs are used.",
)
@click.option(
    "--against",
    metavar="MODEL",
    help="Model to time beside it, in float and int8: what `build` takes, or none (default: the original).",
)
@click.option("--against-weights", type=click.Path(path_type=Path), help="Checkpoint of --against.")
@click.option(
    "--effort",
    metavar="NAME|NUMBER",
    help="Operating point of the real images (default: balanced, and every named point is timed too).",
)
@run_options
@board_options
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as JSON.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the measurement (default: BUNDLE.measurement.json beside the bundle).",
)
@click.option("--force", is_flag=True, help="Replace a measurement that is there.")
def command(
    bundle: Path,
    images: Path | None,
    as_json: bool,
    output: Path | None,
    force: bool,
    device: str | None,
    python: str,
    timeout: int,
    **settings: Any,
) -> None:
    """Measure BUNDLE: latency of every path, gates on real images, time and memory per branch."""
    from edgevit.api.profile import lines, profile
    from edgevit.util import strict_json
    from edgevit.util.progress import note, warn

    if device is not None and device.startswith("qemu:") and settings["cpus"] is not None:
        raise click.UsageError("--cpus is for real processors; an emulated device has one")
    stem = bundle.name.removesuffix(".zip") or bundle.resolve().name
    target = output or bundle.parent / f"{stem}.measurement.json"
    if images is None:
        note(
            "no --images given; the golden inputs show no real mix of images, so open rates and the expected latency "
            "mean little"
        )
    measurement = profile(
        bundle, images, device=device, python=python, timeout_s=timeout, output=target, force=force, **settings
    )
    for warning in measurement.warnings:
        warn(warning)
    if as_json:
        click.echo(strict_json.dumps(measurement), nl=False)
        return
    click.echo("\n".join(lines(measurement)))
    click.echo(f"Written to {target}; see it with: edgevit report {bundle} {target}")
