"""`edgevit sign`: put your name to a bundle."""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = """\b
Examples:
  openssl ecparam -name prime256v1 -genkey -noout -out my.key
  openssl ec -in my.key -pubout -out my.pub
  edgevit sign out/deit --key my.key
  edgevit verify out/deit.zip --key my.pub

\b
The signature is in the format of OpenSSF model signing; one serves for the folder and for its zip. Whoever receives the
bundle needs it and your public key, which must reach them another way than the bundle. Nothing is sent anywhere.
Needs: pip install 'edgevit[sign]'
"""


@click.command(epilog=EPILOG, short_help="Sign a bundle with your private key.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Your private key: P-256, 384, 521 in PEM.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The signature (default: BUNDLE.sig beside it).")
@click.option("--force", is_flag=True, help="Replace a signature that is there.")
def command(bundle: Path, key: Path, output: Path | None, force: bool) -> None:
    """Sign BUNDLE (folder or zip) with a private key; every file of it is checked against its manifest first."""
    from edgevit.api.sign import sign

    click.echo(f"Signature: {sign(bundle, key, output=output, force=force)}")
