"""Write a bundle: a folder, and the same as one `.zip`. Equal inputs give equal bytes.

Nothing in a bundle names a date or a local path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevit.bundle.guide import README, REQUIREMENTS, Guide, example, licence_of, readme, requirements
from edgevit.bundle.packed import pack, top_folder
from edgevit.bundle.sbom import SBOM, sbom
from edgevit.errors import OutputError
from edgevit.schema.manifest import BundleFile, GoldenCase, Manifest, PathName
from edgevit.schema.manifest_file import MANIFEST
from edgevit.util import atomic, strict_json
from edgevit.util.ownership import Kind

EXECUTABLE = ("runner/native/runner",)  # files that are programs
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")

Content = bytes | str | Path
NO_GUIDE = Guide()
# Files that tell of all the others, in the order in which they are written: name -> what makes it.
EXPLAINED: dict[str, Callable[[Manifest, Guide], str]] = {README: readme, SBOM: sbom}


@dataclass(frozen=True, kw_only=True, eq=False)
class GoldenRun:
    """An input and what the verified model made of it.

    Attributes:
        path: which gate path it takes.
        effort: the value of the input `effort`.
        image: uint8 RGB `[1, height, width, 3]`.
        logits: float32 `[1, classes]`.
        gates: uint8 `[branches]`, 1 = the branch ran.
        tokens: int32 `[points]`, patch tokens left after each point where they merge (None: not to be compared).
    """

    path: PathName
    effort: float
    image: NDArray[np.uint8]
    logits: NDArray[np.float32]
    gates: NDArray[np.uint8]
    tokens: NDArray[np.int32] | None = None


def write_bundle(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, Content],
    golden: Sequence[GoldenRun],
    *,
    labels: Sequence[str] = (),
    guide: Guide = NO_GUIDE,
    force: bool = False,
) -> Path:
    """Write the bundle to `folder` and `folder`.zip, both by rename and together, and return the path of the zip.

    Args:
        folder: where it goes; must not exist unless `force`.
        manifest: everything known; `files`, `golden` and `labels` in it are filled in here.
        files: path inside the bundle -> its content, or the file that holds it: the model, report.json, report.html,
            runner/run.py, `licences/weights.txt` if there is more to say than `origin` does. A folder stands for all
            files below it.
        golden: runs of the verified model, one per path.
        labels: names of the classes, if known.
        guide: what the runtime says for README.md and requirements.txt, and its example.
        force: replace what is there.

    Raises:
        OutputError: something is there already, or is no bundle; a path inside the bundle is not plain; or the disk
            refuses.
    """
    archive = folder.parent / f"{folder.name}.zip"
    refuse_existing(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic.scratch(folder.parent, folder.name) as staging:
            content, zipped = staging / "content", staging / "bundle.zip"
            content.mkdir(mode=0o755)
            _fill(content, manifest, _flatten(files), golden, labels, guide)
            pack(content, zipped, top_folder(manifest.name))
            moves: dict[str, tuple[Path, Kind]] = {content.name: (folder, "bundle"), zipped.name: (archive, "archive")}
            atomic.install(staging, moves, replace=force)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    return archive


def refuse_existing(folder: Path, *, force: bool) -> None:
    """Raise OutputError for a folder or zip that must not be replaced; to be asked before long work.

    What a killed build left beside it is removed, or put in place if that had begun.
    """
    atomic.refuse_existing(folder, "bundle", force=force)
    atomic.refuse_existing(folder.parent / f"{folder.name}.zip", "archive", force=force)


def _fill(
    content: Path,
    manifest: Manifest,
    files: Mapping[str, Content],
    golden: Sequence[GoldenRun],
    labels: Sequence[str],
    guide: Guide,
) -> None:
    every: dict[str, Content] = {
        "licences/weights.txt": _weights_licence(manifest),
        **files,
        "licences/edgevit.txt": _own_licence(),
    }
    cases = []
    for run in golden:
        case = GoldenCase(
            path=run.path,
            effort=run.effort,
            image=f"golden/{run.path}.image.npy",
            logits=f"golden/{run.path}.logits.npy",
            gates=f"golden/{run.path}.gates.npy",
            tokens=None if run.tokens is None else f"golden/{run.path}.tokens.npy",
        )
        every |= {case.image: _npy(run.image), case.logits: _npy(run.logits), case.gates: _npy(run.gates)}
        if run.tokens is not None and case.tokens is not None:
            every[case.tokens] = _npy(run.tokens)
        cases.append(case)
    if labels:
        every["labels.json"] = strict_json.dumps(list(labels))
    every |= {REQUIREMENTS: requirements(manifest, guide), **example(manifest, guide)}
    listed = [_put(content, name, every[name]) for name in sorted(every)]
    manifest = dataclasses.replace(
        manifest, golden=tuple(cases), labels="labels.json" if labels else None, files=tuple(listed)
    )
    for name, made in EXPLAINED.items():
        listed.append(_put(content, name, made(manifest, guide)))
        manifest = dataclasses.replace(manifest, files=tuple(sorted(listed, key=lambda file: file.path)))
    missing = {manifest.model, *manifest.models.values()} - set(every)
    if missing:
        raise OutputError(f"the manifest names model files that were not given: {', '.join(sorted(missing))}")
    _put(content, MANIFEST, strict_json.seal(manifest))


def _flatten(files: Mapping[str, Content]) -> dict[str, Content]:
    """Return folders replaced by the files below them."""
    flat: dict[str, Content] = {}
    for name, value in files.items():
        if isinstance(value, Path) and value.is_dir():
            below = (path for path in value.rglob("*") if path.is_file())
            flat |= {f"{name}/{path.relative_to(value).as_posix()}": path for path in below}
        else:
            flat[name] = value
    return flat


def _put(content: Path, name: str, value: Content) -> BundleFile:
    if not _MEMBER.fullmatch(name) or name.endswith("."):
        raise OutputError(
            f"{name!r} cannot be a path inside a bundle; allowed: letters, digits, '.', '_', '-' and '/', no '..'"
        )
    path = content / name
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = value.read_bytes() if isinstance(value, Path) else value
    raw = strict_json.utf8(raw).encode() if isinstance(raw, str) else raw
    path.write_bytes(raw)
    path.chmod(_mode(name))
    return BundleFile(path=name, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _mode(name: str) -> int:
    return 0o755 if name in EXECUTABLE else 0o644


def _npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _weights_licence(manifest: Manifest) -> str:
    """Return where the weights come from, under which licence, as far as it was stated, and what was done to them."""
    origin = manifest.origin
    known = "\n".join(f"{key}: {value}" for key, value in origin.items()) or "origin: not recorded"
    licence = licence_of(origin)
    known += "" if licence else "\nlicense: not stated"
    note = {
        "": "No licence is stated: ask whoever made the weights before passing this bundle on.",
        "apache-2.0": "The text of the Apache License 2.0 is in edgevit.txt beside this file.",
    }.get(licence.lower(), f"Find the text of {licence!r} where the weights come from.")
    done = "; ".join([*_compression(manifest), *(["quantized to int8"] if manifest.target.int8 else [])])
    changed = f"edgevit changed the weights: {done}; " if done else "edgevit left the weights as they are, in float; "
    return f"Weights of this bundle\n\n{known}\n\n{note}\n{changed}compiled as manifest.json says.\n"


def _compression(manifest: Manifest) -> Sequence[str]:
    """Return what was done to the model before it was built, as its Program tells, or as its branches show."""
    if manifest.original is not None and manifest.original.steps:
        return manifest.original.steps
    pruned = any(branch.units < branch.units_total for branch in manifest.branches)
    gated = any(branch.gated for branch in manifest.branches)
    return [*(["pruned"] if pruned else []), *(["gated"] if gated else [])]


def _own_licence() -> str:
    """The licence text of edgevit itself, which covers the runner: of the checkout, or of the installed package."""
    checkout = Path(__file__).parents[2] / "LICENSE"
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    text = importlib.metadata.distribution("edgevit").read_text("licenses/LICENSE")
    if text is None:
        raise OutputError("edgevit's LICENSE is missing from this installation; install edgevit again")
    return text
