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
  edgevit verify out/deit.zip --key maker.pub     (with out/deit.sig beside it)
"""
SIGNATURES = {
    "holds": "signed by the owner of the key, every file",
    "unchecked": "the signature beside it was not checked: give its maker's public key with --key",
    "none": "not signed: nothing shows who made it",
}


@click.command(epilog=EPILOG, short_help="Check that a bundle is intact, signed, and computes what it did.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--run", is_flag=True, help="Run its golden inputs too; only for bundles whose makers you trust.")
@click.option("--threads", type=THREADS, help="Threads of a run, with --run (default: the target's).")
@click.option(
    "--timeout",
    type=SECONDS,
    help=f"Seconds that the runs may take, with --run (default: {limits.RUN_SECONDS.value}).",
)
@click.option("--key", type=click.Path(path_type=Path), help="Public key of its maker, who must have signed it.")
@click.option("--signature", type=click.Path(path_type=Path), help="The signature (default: BUNDLE.sig beside it).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path,
    run: bool,
    threads: int | None,
    timeout: int | None,
    key: Path | None,
    signature: Path | None,
    as_json: bool,
) -> None:
    """Check every file of BUNDLE (folder or zip) against its manifest, in size and sha256; nothing of it is executed.

    That finds damage, not a maker with bad intentions, who writes a manifest to match: give the maker's public key with
    --key, or compare the sha256 that is printed with one that came another way. With --run its golden inputs are
    run again too, which executes what it holds, in a process of its own with limits on time and memory.
    """
    from edgevit.api.verify import verify
    from edgevit.util import strict_json

    if (threads or timeout) and not run:
        option = "--threads" if threads else "--timeout"
        raise click.UsageError(f"{option} is for --run: without it nothing is run.")
    if signature is not None and key is None:
        raise click.UsageError("--signature is for --key: without it no signature is checked.")
    verified = verify(bundle, run=run, threads=threads, timeout_s=timeout, key=key, signature=signature)
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
            "other_runtime": verified.other_runtime,
            "signature": verified.signature,
        }
        click.echo(strict_json.dumps(answer), nl=False)
        return
    if run and verified.missing_flags:
        click.echo(
            f"edgevit: note: this CPU lacks {', '.join(verified.missing_flags).replace('|', ' or ')}, which target "
            f"{manifest.target.name} counts on; it runs slower here and may round int8 differently",
            err=True,
        )
    if run and verified.other_runtime:
        click.echo(f"edgevit: note: {verified.other_runtime}", err=True)
    click.echo(f"{manifest.name}: {len(manifest.files)} files intact, sha256 {verified.sha256}")
    click.echo(f"  {SIGNATURES[verified.signature]}")
    counted = {case.path for case in manifest.golden if case.tokens is not None}
    for result in verified.golden:
        equal = "gates and numbers of tokens equal" if result.path in counted else "gates equal"
        click.echo(
            f"  {result.path:<12} {equal}, logits within {result.logit_error:.3g} "
            f"(allowed {manifest.golden_tolerance:.3g})"
        )
    if not run:
        click.echo(
            f"  not checked: what it computes; --run runs its {len(manifest.golden)} golden inputs (trusted bundles)"
        )
