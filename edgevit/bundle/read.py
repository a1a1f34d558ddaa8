"""Open a bundle, folder or zip, trusting nothing in it but its manifest; run its golden inputs.

A bundle that opens is whole: what its manifest lists is there and is what it was, and nothing else is. Whether the
manifest is its author's own nobody can tell from the bundle: who changes a file can write its new hash into the
manifest. So run what came from a stranger only where you would run his program, or compare the manifest's sha256, which
`edgevit verify` prints, with one that came another way. Needs numpy and the runtime only.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import BundleError, ParityError
from edgevit.schema.manifest import Bundle, BundleFile, GoldenCase, PathName
from edgevit.schema.manifest_file import MANIFEST, is_plain, parse_manifest, with_faults
from edgevit.schema.measurement import GoldenParity
from edgevit.util import limits
from edgevit.util.atomic import scratch
from edgevit.util.bounded import open_zip
from edgevit.util.limits import LimitError
from edgevit.util.ownership import zip_root
from edgevit.util.paths import is_file, is_folder, is_there

# Older bundles store their members uncompressed; deflate cannot gain much on real weights.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK_BYTES = 1 << 20
WORST_ERROR = 1e30

G = TypeVar("G", bound=np.generic)


class Runner(Protocol):
    """What a backend gives: a loaded model."""

    def run(
        self, image: NDArray[np.uint8], effort: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:  # pragma: no cover
        """Return image uint8 `[1, height, width, 3]` to logits `[1, classes]` and gates `[branches]`."""
        ...

    def answer(
        self, image: NDArray[np.uint8], effort: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32]]:  # pragma: no cover
        """Return logits, gates and the tokens `[points]` that are left after each point where they merge."""
        ...


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """One golden input run again: the largest absolute logit difference, and what else changed.

    `changed_gates` are branches that ran and should not, or the other way round, `changed_tokens` points where another
    number of tokens was left, in words.
    """

    path: PathName
    held: bool
    logit_error: float
    changed_gates: tuple[str, ...]
    changed_tokens: tuple[str, ...] = ()

    def parity(self, allowed: float) -> GoldenParity:
        """Return it as a Measurement tells it: JSON knows no nan, so that is as far off as can be."""
        error = float(np.nan_to_num(self.logit_error, nan=WORST_ERROR, posinf=WORST_ERROR))
        return GoldenParity(
            path=self.path,
            logit_error=error,
            allowed=allowed,
            gates_equal=not self.changed_gates,
            tokens_equal=not self.changed_tokens,
        )


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle; a zip is unpacked to a temporary folder that lives as long as the context.

    Raises:
        BundleError: not a bundle, of another schema version, damaged, or with members that lead out of it.
    """
    if is_folder(path):
        yield _check(path, path)
        return
    if not is_file(path):
        if is_there(path):
            raise BundleError(f"{path} is a pipe or a device, and only regular files are read")
        raise BundleError(f"{path} does not exist; a bundle is the folder or the .zip that `edgevit build` writes")
    with scratch() as folder:
        yield _check(_unpack(path, folder), path)


def verify_bundle(bundle: Bundle, runner: Runner) -> tuple[GoldenResult, ...]:
    """Run every golden input on `runner` again: gates and tokens must be equal, logits within the tolerance.

    Raises:
        BundleError: a golden file is not the array it should be.
        ParityError: an output is not the expected one; the message lists every case.
    """
    results = rerun_golden(bundle, runner)
    faults = [_golden_fault(result, bundle.manifest.golden_tolerance) for result in results if not result.held]
    if faults:
        headline = f"{len(faults)} of {len(results)} golden outputs of {bundle.manifest.name} are not reproduced here:"
        raise ParityError(with_faults(headline, faults))
    return results


def rerun_golden(bundle: Bundle, runner: Runner) -> tuple[GoldenResult, ...]:
    """Run every golden input on `runner` again, and tell what came of it.

    Raises:
        BundleError: a golden file is not the array it should be.
    """
    return tuple(_rerun(bundle, case, runner) for case in bundle.manifest.golden)


def load_golden(bundle: Bundle, case: GoldenCase) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """The arrays of a golden case: image uint8 `[1, height, width, 3]`, logits float32, gates uint8 `[branches]`."""
    manifest = bundle.manifest
    classes = next(output.shape for output in manifest.outputs if output.name == "logits")
    return (
        _array(bundle, case.image, np.uint8, manifest.input.shape),
        _array(bundle, case.logits, np.float32, classes),
        _array(bundle, case.gates, np.uint8, (len(manifest.branches),)),
    )


def load_golden_tokens(bundle: Bundle, case: GoldenCase) -> NDArray[np.int32] | None:
    """Return the tokens of a golden case, int32 `[points]`; None where they are not compared."""
    if case.tokens is None:
        return None
    shape = next(output.shape for output in bundle.manifest.outputs if output.name == "tokens")
    return _array(bundle, case.tokens, np.int32, shape)


def _rerun(bundle: Bundle, case: GoldenCase, runner: Runner) -> GoldenResult:
    image, _, _ = load_golden(bundle, case)
    run = runner.run if case.tokens is None else runner.answer
    return compare_golden(bundle, case, *run(image, effort=case.effort))


def compare_golden(
    bundle: Bundle,
    case: GoldenCase,
    got_logits: NDArray[np.float32],
    got_gates: NDArray[np.uint8],
    got_tokens: NDArray[np.int32] | None = None,
) -> GoldenResult:
    """Compare what came of a golden input with what is expected.

    Args:
        bundle: whose golden input it is.
        case: the golden input.
        got_logits: `[1, classes]`.
        got_gates: `[branches]`.
        got_tokens: `[points]`; needed where the case has such.

    Raises:
        BundleError: a golden file is not the array it should be, or the outputs are of another shape.
    """
    names = tuple(branch.name for branch in bundle.manifest.branches)
    _, logits, gates = load_golden(bundle, case)
    if got_logits.shape != logits.shape or got_gates.shape != gates.shape:
        raise BundleError(
            f"{case.path}: the model gives logits {list(got_logits.shape)} and gates {list(got_gates.shape)}, the "
            f"golden ones are {list(logits.shape)} and {list(gates.shape)}; build the bundle again"
        )
    changed = tuple(n for n, a, b in zip(names, gates, got_gates, strict=True) if a != b)
    merged = _changed_tokens(bundle, case, got_tokens)
    error = float(np.abs(got_logits - logits).max())
    held = error <= bundle.manifest.golden_tolerance and not changed and not merged
    return GoldenResult(path=case.path, held=held, logit_error=error, changed_gates=changed, changed_tokens=merged)


def _changed_tokens(bundle: Bundle, case: GoldenCase, got: NDArray[np.int32] | None) -> tuple[str, ...]:
    """Return the points where another number of tokens was left than a golden case says, in words."""
    tokens = load_golden_tokens(bundle, case)
    if tokens is None:
        return ()
    if got is None or got.shape != tokens.shape:
        told = "none" if got is None else f"{list(got.shape)}"
        raise BundleError(
            f"{case.path}: the model gives tokens {told}, the golden ones are {list(tokens.shape)}; build the bundle "
            "again"
        )
    pairs = enumerate(zip(tokens.tolist(), got.tolist(), strict=True), 1)
    return tuple(f"{b} instead of {a} at point {index}" for index, (a, b) in pairs if a != b)


def _golden_fault(result: GoldenResult, tolerance: float) -> str:
    gates = f"; gates that changed: {', '.join(result.changed_gates)}" if result.changed_gates else ""
    tokens = f"; tokens left: {', '.join(result.changed_tokens)}" if result.changed_tokens else ""
    return f"{result.path}: logits differ by up to {result.logit_error:.3g}, allowed: {tolerance:.3g}{gates}{tokens}"


def _array(bundle: Bundle, name: str, dtype: type[G], shape: tuple[int, ...]) -> NDArray[G]:
    try:
        # Mapped first: a header that claims more than the file holds is then a fault, not an allocation.
        array = np.load(
            bundle.folder / name,
            allow_pickle=False,
            mmap_mode="r",
            max_header_size=limits.ARRAY_HEADER_BYTES.value,
        )
        if not isinstance(array, np.ndarray):  # of an archive of arrays
            raise ValueError("it is an archive")
    except Exception as error:  # numpy raises many kinds on damaged headers: TokenError, OverflowError, ...
        raise BundleError(f"{name} in the bundle is not a readable .npy file ({error}); build it again") from error
    if array.dtype != dtype or array.shape != shape:
        want = f"{np.dtype(dtype)} {list(shape)}"
        raise BundleError(f"{name} in the bundle is {array.dtype} {list(array.shape)}, expected {want}")
    return np.array(array)


def _check(folder: Path, shown: Path) -> Bundle:
    """Parse the manifest of an unpacked bundle and hold every file against it."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{shown} is not a bundle: it holds no {MANIFEST}; `edgevit build` writes one")
    try:
        raw = limits.read_regular(path, limits.DOCUMENT_BYTES)
    except (OSError, LimitError) as error:
        raise BundleError(f"{shown}: {MANIFEST} cannot be read: {error}") from error
    manifest = parse_manifest(raw, shown)
    faults = [fault for file in manifest.files if (fault := _file_fault(folder, file))]
    listed = {file.path for file in manifest.files}
    # is_file() follows links; a link is a fault of its own even where it leads nowhere.
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    faults += [f"{name}: not listed in {MANIFEST}" for name in sorted(present - listed - {MANIFEST})]
    if faults:
        raise BundleError(with_faults(f"{shown} is damaged or was changed; copy or build it again:", faults))
    return Bundle(folder=folder, manifest=manifest, sha256=hashlib.sha256(raw).hexdigest())


def _file_fault(folder: Path, file: BundleFile) -> str | None:
    path = folder / file.path
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or not path.resolve().is_relative_to(folder.resolve()):
            return f"{file.path}: is a link or not a plain file"
        if status.st_size != file.bytes:
            return f"{file.path}: has {status.st_size} bytes, the manifest says {file.bytes}"
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        return f"{file.path}: {error.strerror or error}"
    return None if digest == file.sha256 else f"{file.path}: sha256 is {digest}, the manifest says {file.sha256}"


def _unpack(path: Path, folder: Path) -> Path:
    """Unpack a zip to `folder` and return where the bundle lies: there, or in the one folder that all of it is in."""
    try:
        with open_zip(path) as archive:
            members = archive.infolist()
            faults = _member_faults(members, path.stat().st_size)
            if faults:
                raise BundleError(with_faults(f"{path} is not a bundle to be trusted:", faults))
            names = [member.filename for member in members if not member.is_dir()]
            for member in members:
                if not member.is_dir():
                    _extract(archive, member, folder / member.filename)
            return folder / zip_root(names)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as a bundle's zip ({error}); copy or build it again") from error


def _member_faults(members: list[zipfile.ZipInfo], zip_bytes: int) -> list[str]:
    """Return what must be known before anything is unpacked."""
    faults = [f"{m.filename!r} leads out of the bundle" for m in members if not is_plain(m.filename.removesuffix("/"))]
    faults += [f"{m.filename!r} is a link" for m in members if stat.S_ISLNK(m.external_attr >> 16)]
    if len({m.filename.casefold() for m in members}) != len(members):
        faults.append("a member is there twice")
    if len(members) > limits.ARCHIVE_MEMBERS.value:
        faults.append(f"it has {len(members)} members, allowed: {limits.ARCHIVE_MEMBERS}")
    faults += [f"{m.filename!r} is packed in a way that bundles never are" for m in members if not _known(m)]
    unpacked, allowed = sum(m.file_size for m in members), limits.BUNDLE_EXPANSION.value * zip_bytes
    if unpacked > allowed:
        faults.append(f"it would unpack to {unpacked} bytes, allowed: {allowed} ({limits.BUNDLE_EXPANSION})")
    return faults


def _known(member: zipfile.ZipInfo) -> bool:
    return member.compress_type in COMPRESSIONS and not member.flag_bits & 1  # bit 0: encrypted


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("xb") as file:
        left = member.file_size
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:  # the header lied about its size
                raise BundleError(f"{member.filename!r} unpacks to more than the {member.file_size} bytes it claims")
            file.write(chunk)
    target.chmod(0o755 if member.external_attr >> 16 & stat.S_IXUSR else 0o644)
