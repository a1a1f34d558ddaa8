"""Check a bundle: its files, and if it may be run also what it computes."""

from __future__ import annotations

from pathlib import Path

from edgevit.api.bundle import Bundle, bundle_path
from edgevit.devices import local
from edgevit.devices.local import Verified

__all__ = ["Verified", "verify"]


def verify(
    bundle: Bundle | str | Path, *, run: bool = False, threads: int | None = None, timeout_s: float | None = None
) -> Verified:
    """Check every file of a bundle against its manifest, in size and sha256; with `run` also what it computes.

    That finds damage, not a maker with bad intentions, who writes his own manifest: compare `sha256` of the result with
    one that came another way.

    Args:
        bundle: what to check, or the path of its folder or .zip.
        run: run its golden inputs again too: gates must be equal, logits within the manifest's tolerance. This
            executes what the bundle holds, in a process of its own with limits on time and memory.
        threads: of a run (default: the target's).
        timeout_s: seconds that the runs may take (default: 600).

    Raises:
        BundleError: not a bundle, or damaged; or its model crashes, does not end, or takes too much memory.
        ParityError: a golden output is not reproduced here.
        RuntimeMissingError: `run`, and the bundle's runtime is not installed.

    Example:
        >>> verified = edgevit.verify("out/tiny.zip", run=True)
        >>> [case.held for case in verified.golden]
        [True, True, True]
    """
    path = bundle_path(bundle)
    return local.verify(path, threads=threads, timeout_s=timeout_s) if run else local.inspect(path)
