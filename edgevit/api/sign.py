"""Sign a bundle, so that whoever receives it can tell whose it is."""

from __future__ import annotations

from pathlib import Path

from edgevit.api.bundle import Bundle, bundle_path
from edgevit.bundle import signature
from edgevit.bundle.read import open_bundle
from edgevit.errors import OutputError
from edgevit.util import atomic

__all__ = ["sign"]


def sign(
    bundle: Bundle | str | Path, key: str | Path, *, output: str | Path | None = None, force: bool = False
) -> Path:
    """Sign a bundle with your private key, and return the signature's file; `verify` checks it with the public key.

    The format is that of OpenSSF model signing; nothing is sent anywhere. Needs the extra `sign`.

    Args:
        bundle: what to sign, or the path of its folder or .zip; one signature is for both.
        key: an elliptic-curve private key (P-256, P-384 or P-521) in PEM, not encrypted.
        output: the signature's file (default: BUNDLE.sig beside it).
        force: replace a signature that is there.

    Raises:
        BundleError: not a bundle, or damaged.
        OutputError: the output is there already, or cannot be written.
        RuntimeMissingError: the extra `sign` is not installed.
        SignatureError: the key cannot sign.

    Example:
        >>> edgevit.sign("out/tiny", "my.key").name
        'tiny.sig'
    """
    path = bundle_path(bundle)
    target = signature.beside(path) if output is None else Path(output)
    atomic.refuse_existing(target, "signature", force=force)
    with open_bundle(path) as opened:
        made = signature.sign(opened, Path(key))
    try:
        atomic.write_file(target, made, replace=force)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return target
