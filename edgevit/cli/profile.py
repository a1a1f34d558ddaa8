"""`edgevit profile`: what a bundle costs on this machine, on real images."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Example:
  edgevit profile out/deit --images photos/ --runs 700
  edgevit report out/deit out/deit.measurement.json
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder, .tar, .zip or image file of real images; without it the bundle's golden inputs are used.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Timed runs per path. p90 needs 64, p95 130, p99 662.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of a run (default: the target's).")
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
    runs: int,
    threads: int | None,
    as_json: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Measure BUNDLE here: latency of every path, gates on real images, time and memory per branch."""
    from edgevit import ondevice, serial
    from edgevit.errors import OutputError
    from edgevit.measure.file import write_measurement

    stem = bundle.name.removesuffix(".zip") or bundle.resolve().name
    target = output or bundle.parent / f"{stem}.measurement.json"
    if target.exists() and not force:
        raise OutputError(f"{target} exists already; choose another file with -o or pass --force to replace it")
    if images is None:
        click.echo(
            "edgevit: note: no --images given; the golden inputs show no real mix of images, so open rates and the "
            "expected latency mean little",
            err=True,
        )
    measurement = ondevice.profile(bundle, images, runs=runs, threads=threads)
    write_measurement(measurement, target)
    if as_json:
        click.echo(serial.dumps(measurement), nl=False)
        return
    for path in measurement.paths:
        click.echo(
            f"{path.path:<12} {path.wall.median_ms:8.2f} ms wall  {path.cpu.median_ms:8.2f} ms CPU  "
            f"{path.branches_open:.1f} of {len(measurement.branches)} branches ran"
        )
    click.echo(
        f"{'expected':<12} {measurement.expected_wall_ms:8.2f} ms wall  {measurement.expected_cpu_ms:8.2f} ms CPU"
    )
    click.echo(f"Written to {target}; see it with: edgevit report {bundle} {target}")
