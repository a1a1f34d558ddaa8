"""`edgevit verify`: is this bundle intact, and with --run, does it compute here what it computed when it was built."""

from __future__ import annotations

from pathlib import Path

import click

from edgevit.cli.ranges import SECONDS, THREADS
from edgevit.util import limits

EPILOG = """\b
Examples:
  edgevit verify out/deit.zip
  edgevit verify out/deit.zip --run
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--run", is_flag=True, help="Run its golden inputs too; only for bundles whose makers you trust.")
@click.option("--threads", type=THREADS, help="Threads of a run, with --run (default: the target's).")
@click.option(
    "--timeout",
    type=SECONDS,
    help=f"Seconds that the runs may take, with --run (default: {limits.RUN_SECONDS.value}).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: Path, run: bool, threads: int | None, timeout: int | None, as_json: bool) -> None:
    """Check every file of BUNDLE (folder or zip) against its manifest, in size and sha256; nothing of it is executed.

    That finds damage, not a maker with bad intentions, who writes his own manifest: compare the sha256 that is printed
    with one that came another way. With --run its golden inputs are run again too, which executes what it holds, in a
    process of its own with limits on time and memory.
    """
    from edgevit.api.verify import verify
    from edgevit.util import strict_json

    if (threads or timeout) and not run:
        option = "--threads" if threads else "--timeout"
        raise click.UsageError(f"{option} is for --run: without it nothing is run.")
    verified = verify(bundle, run=run, threads=threads, timeout_s=timeout)
    manifest = verified.manifest
    if as_json:
        answer = {
            "bundle": manifest.name,
            "sha256": verified.sha256,
            "files": len(manifest.files),
            "run": run,
            "golden": verified.golden,
            "golden_tolerance": manifest.golden_tolerance,
            "missing_cpu_flags": verified.missing_flags,
        }
        click.echo(strict_json.dumps(answer), nl=False)
        return
    if run and verified.missing_flags:
        click.echo(
            f"edgevit: note: this CPU lacks {', '.join(verified.missing_flags).replace('|', ' or ')}, which target "
            f"{manifest.target.name} counts on; it runs slower here and may round int8 differently",
            err=True,
        )
    click.echo(f"{manifest.name}: {len(manifest.files)} files intact, sha256 {verified.sha256}")
    for result in verified.golden:
        click.echo(
            f"  {result.path:<12} gates equal, logits within {result.logit_error:.3g} "
            f"(allowed {manifest.golden_tolerance:.3g})"
        )
    if not run:
        click.echo(
            f"  not checked: what it computes; --run runs its {len(manifest.golden)} golden inputs (trusted bundles)"
        )
