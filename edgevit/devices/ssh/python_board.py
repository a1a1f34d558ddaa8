"""Profile a bundle on a board over ssh: images are prepared here, measured there, by the same code as at the desk."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import MODULES, backend
from edgevit.bundle.read import open_bundle
from edgevit.devices import board_program
from edgevit.devices.local import DEFAULT_RUNS, prepare_images
from edgevit.devices.ssh import native_board
from edgevit.devices.ssh.connection import parse_address
from edgevit.devices.ssh.job import Content, Job, run_job
from edgevit.errors import BundleError, DeviceError
from edgevit.schema.manifest import Manifest
from edgevit.schema.manifest_file import MANIFEST
from edgevit.schema.measurement import Measurement
from edgevit.util import strict_json

DEFAULT_TIMEOUT_S = 1800
PACKAGE = Path(__file__).parents[2]
# Modules that run in processes of their own, so that nobody imports them.
WORKERS = ("edgevit.measure.probe", "edgevit.measure.trace")


def profile(
    path: Path,
    images: Path | None,
    device: str,
    *,
    runs: int = DEFAULT_RUNS,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    python: str = "python3",
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Measurement:
    """Measure a bundle on the board `device`, `ssh://[user@]host[:port]`.

    Args:
        path: the bundle, folder or zip.
        images: the user's; None: the bundle's golden inputs.
        device: its address.
        runs: timed runs per path.
        threads: threads of a run (None: the target's).
        cpus: CPUs of the board to hold the run to (None: all).
        python: Python on the board, 3.11 or newer, with numpy and the runtime; a bundle of machine code needs none.
        timeout_s: how long the measurement may take there.

    Raises:
        DeviceError: the board cannot be reached, lacks something, or gives no measurement.
        BundleError: not a bundle, or damaged.
        ImagesError: no usable image.
    """
    address = parse_address(device)
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        pixels, used = prepare_images(bundle, images, runs)
        if backend(manifest.backend).NATIVE:
            return native_board.profile(
                bundle, pixels, used, address, runs=runs, threads=threads, cpus=cpus, timeout_s=timeout_s
            )
        stored = io.BytesIO()
        np.save(stored, pixels, allow_pickle=False)
        request = {"used": used, "runs": runs, "threads": threads, "cpus": None if cpus is None else list(cpus)}
        job = Job(
            arch=manifest.target.arch,
            needs=requirements(manifest),
            files={
                **program_files(("edgevit.devices.board_program", *WORKERS, MODULES[manifest.backend])),
                **{f"{board_program.BUNDLE}/{name}": bundle.folder / name for name in _members(manifest)},
                board_program.IMAGES: stored.getvalue(),
            },
            command=("-m", "edgevit.devices.board_program", json.dumps(strict_json.to_data(request))),
            answer=board_program.ANSWER,
        )
        answer = run_job(address, job, python=python, timeout_s=timeout_s)
        return _measurement(answer, bundle.sha256, manifest, device)


def requirements(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """(module, pip requirement) of numpy and the bundle's runtime, in the version the bundle was verified with."""
    runtime = manifest.backend
    # What follows the release (some tell their commit) means nothing to pip.
    release = re.match(r"[0-9]+(?:\.(?:post)?[0-9]+)*", manifest.tools.get(runtime, ""))
    return (("numpy", "numpy"), (runtime, f"{runtime}=={release[0]}" if release else runtime))


def program_files(modules: Sequence[str]) -> dict[str, Content]:
    """Source files of modules of this package and of all that they import from it, by path below its parent."""
    found: dict[str, Content] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = PACKAGE.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        key = path.relative_to(PACKAGE.parent).as_posix()
        if key in found or not path.is_file():  # `from edgevit.x import y`, where y is no module
            continue
        found[key] = path
        waiting += imports(path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def imports(path: Path) -> list[str]:
    """Names that a file imports from this package, inside functions too; what only a type checker reads is left out."""
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        waiting += ast.iter_child_nodes(node)
    return [name for name in names if name.split(".")[0] == PACKAGE.name]


def _members(manifest: Manifest) -> list[str]:
    return [MANIFEST, *(file.path for file in manifest.files)]


def _measurement(answer: object, sha256: str, manifest: Manifest, device: str) -> Measurement:
    """Read what the board answered, trusting nothing in it."""
    answer = _without_control(answer)
    told = answer if isinstance(answer, dict) else {}
    if isinstance(told.get("error"), str):
        raise DeviceError(f"{device} cannot measure the bundle: {told['error'][:2000]}")
    faults: list[str] = []
    measurement = strict_json.from_data(Measurement, told.get("measurement"), faults, "measurement")
    if measurement is None:
        raise DeviceError(f"{device} gave a measurement that cannot be read: {'; '.join(faults[:3])[:600]}")
    if measurement.bundle_sha256 != sha256:
        raise BundleError(f"{device} measured another bundle than the one it was sent; try again")
    runtime, verified = measurement.environment.runtime_version, manifest.tools.get(manifest.backend)
    warnings = measurement.warnings
    if verified and runtime != verified:
        warnings += (f"the device runs {manifest.backend} {runtime}, the bundle was verified with {verified}",)
    return dataclasses.replace(measurement, device="ssh", warnings=warnings)


def _without_control(value: Any) -> Any:
    """JSON data whose strings cannot steer a terminal."""
    if isinstance(value, str):
        return "".join(c for c in value if c.isprintable() or c == "\n")
    if isinstance(value, list):
        return [_without_control(item) for item in value]
    return {k: _without_control(v) for k, v in value.items()} if isinstance(value, dict) else value
