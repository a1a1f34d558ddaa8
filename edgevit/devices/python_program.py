"""The Python measuring program: the code that measures at the desk is sent along, and measures with the runtime there.

Images are prepared at the desk, so a machine elsewhere needs Python with numpy and the bundle's runtime only.
"""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.backends import MODULES
from edgevit.devices.board_environment import require_arch
from edgevit.devices.confined import allowance
from edgevit.devices.machine import Content, RemoteMachine, Session, Step, StepResult
from edgevit.devices.request import IMAGES, PROGRAM, ProfileRequest
from edgevit.devices.runtimes import WORKERS
from edgevit.errors import BundleError, DeviceError
from edgevit.schema.manifest import Manifest
from edgevit.schema.manifest_file import MANIFEST
from edgevit.schema.measurement import Measurement
from edgevit.util import strict_json
from edgevit.util.signals import exit_words
from edgevit.util.text import printable

PACKAGE = Path(__file__).parents[1]
BUNDLE = "bundle"  # the folder of its files there
OLDEST_PYTHON = (3, 11)
ASKING_S = 120
# For any Python 3, so that an old one gets a clear answer too: its version, and which of some modules are missing.
ABOUT = (
    "import json, sys, importlib.util as u; "
    "print(json.dumps([sys.version_info[:3], [m for m in sys.argv[1:] if u.find_spec(m) is None]]))"
)


def measure(machine: RemoteMachine, request: ProfileRequest) -> Measurement:
    """Measure a bundle with Python and the bundle's runtime on a machine elsewhere.

    Raises:
        DeviceError: the machine cannot be reached, lacks something, or gives no measurement.
    """
    bundle, manifest = request.bundle, request.bundle.manifest
    stored = io.BytesIO()
    np.save(stored, request.images, allow_pickle=False)
    allowed = allowance(manifest, seconds=request.timeout_s, threads=request.threads)
    asked = {**request.data(), "bundle": BUNDLE, "allowed": asdict(allowed)}
    files: dict[str, Content] = {
        **program_files((PROGRAM, *WORKERS, MODULES[manifest.backend])),
        **{f"{BUNDLE}/{name}": bundle.folder / name for name in _members(manifest)},
        IMAGES: stored.getvalue(),
    }
    step = Step(name="measure", program=None, arguments=("-m", PROGRAM, json.dumps(asked)))
    with machine.session() as session:
        require_arch(request.target, session.describe(), machine.name)
        require_python(session, machine, requirements(manifest))
        result = session.run(files, [step], timeout_s=request.timeout_s)["measure"]
    return _measurement(_answer(result, machine.name), bundle.sha256, manifest, machine)


def require_python(session: Session, machine: RemoteMachine, needs: Sequence[tuple[str, str]]) -> None:
    """Refuse a machine whose Python is missing, too old, or without what is needed, (module, pip requirement) each.

    Raises:
        DeviceError: it is.
    """
    python = machine.python
    step = Step(name="python", program=None, arguments=("-c", ABOUT, *(module for module, _ in needs)))
    result = session.run({}, [step], timeout_s=ASKING_S)["python"]
    try:
        version, absent = json.loads(result.out.strip().splitlines()[-1])
        version, absent = tuple(map(int, version)), set(map(str, absent))
    except (ValueError, TypeError, IndexError, RecursionError):
        raise DeviceError(
            f"{machine.name} has no {python} ({printable(result.err)}); install it there (sudo apt-get install python3 "
            "python3-venv), or name another one with --python"
        ) from None
    if version[:2] < OLDEST_PYTHON:
        raise DeviceError(
            f"{python} on {machine.name} is Python {'.'.join(map(str, version))}, needed: "
            f"{'.'.join(map(str, OLDEST_PYTHON))} or newer; name another one with --python"
        )
    missing = [package for module, package in needs if module in absent]
    if missing:
        packages = " ".join(shlex.quote(package) for _, package in needs)
        raise DeviceError(
            f"{python} on {machine.name} lacks {' '.join(missing)}; install it there: {python} -m pip install "
            f"{packages}. Where the system's Python may not be changed, make a virtual environment and name its Python "
            "with --python"
        )


def requirements(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return (module, pip requirement) of numpy and the runtime, in the version the bundle was verified with."""
    runtime = manifest.backend
    # What follows the release (some tell their commit) means nothing to pip.
    release = re.match(r"[0-9]+(?:\.(?:post)?[0-9]+)*", manifest.tools.get(runtime, ""))
    return (("numpy", "numpy"), (runtime, f"{runtime}=={release[0]}" if release else runtime))


def program_files(modules: Sequence[str]) -> dict[str, Content]:
    """Return source files of modules of this package and of all they import from it, by path below its parent."""
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
    """Return names that a file imports from this package, in functions too, but not what only a type checker reads."""
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


def _answer(result: StepResult, machine: str) -> Any:
    """Return the JSON value that the program prints last.

    Raises:
        DeviceError: it prints none.
    """
    try:
        return json.loads(result.out.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        words = printable(result.err) if result.err.strip() else exit_words(_signed(result.status))
        raise DeviceError(f"{machine} could not run the bundle: {words}") from None


def _signed(status: int) -> int:
    """Return a shell's exit status as Python has it: a signal's number below zero."""
    return 128 - status if status > 128 else status


def _measurement(answer: object, sha256: str, manifest: Manifest, machine: RemoteMachine) -> Measurement:
    """Read what the program answered, trusting nothing in it."""
    answer = _without_control(answer)
    found = answer if isinstance(answer, dict) else {}
    if isinstance(found.get("error"), str):
        raise DeviceError(f"{machine.name} cannot measure the bundle: {found['error'][:2000]}")
    faults: list[str] = []
    measurement = strict_json.from_data(Measurement, found.get("measurement"), faults, "measurement")
    if measurement is None:
        raise DeviceError(f"{machine.name} gave a measurement that cannot be read: {'; '.join(faults[:3])[:600]}")
    if measurement.bundle_sha256 != sha256:
        raise BundleError(f"{machine.name} measured another bundle than the one it was sent; try again")
    runtime, verified = measurement.environment.runtime_version, manifest.tools.get(manifest.backend)
    warnings = measurement.warnings
    if verified and runtime != verified:
        warnings += (f"the device runs {manifest.backend} {runtime}, the bundle was verified with {verified}",)
    return replace(measurement, device=machine.kind, warnings=warnings)


def _without_control(value: Any) -> Any:
    """Return JSON data whose strings cannot steer a terminal."""
    if isinstance(value, str):
        return "".join(c for c in value if c.isprintable() or c == "\n")
    if isinstance(value, list):
        return [_without_control(item) for item in value]
    return {k: _without_control(v) for k, v in value.items()} if isinstance(value, dict) else value
