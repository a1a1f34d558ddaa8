"""Check a bundle: its files, and if it may be run also what it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgevit.api.bundle import Bundle, bundle_path
from edgevit.bundle import signature as signatures
from edgevit.bundle.read import open_bundle
from edgevit.devices import local
from edgevit.devices.local import Verified
from edgevit.util.paths import is_file

__all__ = ["Verified", "verify"]


def verify(
    bundle: Bundle | str | Path,
    *,
    run: bool = False,
    threads: int | None = None,
    timeout_s: float | None = None,
    key: str | Path | None = None,
    signature: str | Path | None = None,
) -> Verified:
    """Check every file of a bundle against its manifest, in size and sha256; with `run` also what it computes.

    That finds damage, not a maker with bad intentions, who writes his own manifest: give his public key, or compare
    `sha256` of the result with one that came another way.

    Args:
        bundle: what to check, or the path of its folder or .zip.
        run: run its golden inputs again too: gates must be equal, logits within the manifest's tolerance. This
            executes what the bundle holds, in a process of its own with limits on time and memory.
        threads: of a run (default: the target's).
        timeout_s: seconds that the runs may take (default: 600).
        key: public key of its maker, in PEM; the signature must be by him, and is checked before anything is run.
        signature: where that is (default: BUNDLE.sig beside the bundle).

    Raises:
        BundleError: not a bundle, or damaged; or its model crashes, does not end, or takes too much memory.
        ParityError: a golden output is not reproduced here.
        RuntimeMissingError: `run`, and the bundle's runtime is not installed; or `key`, and the extra `sign` is not.
        SignatureError: `key`, and the bundle is not signed, or not by its owner, or was changed since.

    Example:
        >>> verified = edgevit.verify("out/tiny.zip", run=True)
        >>> [case.held for case in verified.golden]
        [True, True, True]
    """
    path = bundle_path(bundle)
    signed = signatures.beside(path) if signature is None else Path(signature)
    sha256 = None
    if key is not None:
        with open_bundle(path) as opened:
            signatures.check(opened, Path(key), signed)
            sha256 = opened.sha256
    if run:
        verified = local.verify(path, threads=threads, timeout_s=timeout_s, sha256=sha256)
    else:
        verified = local.inspect(path, sha256=sha256)
    return replace(verified, signature="holds" if key is not None else "unchecked" if is_file(signed) else "none")
