"""`edgevit verify`: is this bundle intact, and does it compute here what it computed when it was built."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Example:
  edgevit verify out/deit.zip
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="Threads of a run (default: the target's).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: Path, threads: int | None, as_json: bool) -> None:
    """Check every file of BUNDLE (folder or zip) against its manifest, then run its golden inputs again."""
    from edgevit import ondevice, serial

    verified = ondevice.verify(bundle, threads=threads)
    manifest = verified.manifest
    if as_json:
        answer = {
            "bundle": manifest.name,
            "sha256": verified.sha256,
            "files": len(manifest.files),
            "golden": verified.golden,
            "golden_tolerance": manifest.golden_tolerance,
            "missing_cpu_flags": verified.missing_flags,
        }
        click.echo(serial.dumps(answer), nl=False)
        return
    if verified.missing_flags:
        click.echo(
            f"edgevit: note: this CPU lacks {', '.join(verified.missing_flags).replace('|', ' or ')}, which target "
            f"{manifest.target['name']} counts on; it runs slower here and may round int8 differently",
            err=True,
        )
    click.echo(f"{manifest.name}: {len(manifest.files)} files intact, sha256 {verified.sha256}")
    for result in verified.golden:
        click.echo(
            f"  {result.path:<12} gates equal, logits within {result.logit_error:.3g} "
            f"(allowed {manifest.golden_tolerance:.3g})"
        )
