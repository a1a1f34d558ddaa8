"""Outside `backends/` nothing names a runtime: who adds one touches a folder and a line of the table."""

from __future__ import annotations

import re
from pathlib import Path

import edgevit
from edgevit.schema.target import list_targets

PACKAGE = Path(edgevit.__file__).parent
RUNTIME = re.compile(r"onnx ?runtime|openvino|tvm|\bort\b", re.IGNORECASE)
# (file, what stands there): why it may.
ALLOWED = {
    ("cli/build.py", "CPU time to search for TVM's tiles on this machine"): "help of an option that one runtime has",
    ("report/pictures.py", 'SCRATCH = {"tvm": "state and stack"}'): "legend of a bar; reports know manifests only",
}


def test_no_file_outside_backends_names_a_runtime() -> None:
    targets = re.compile("|".join(sorted(map(re.escape, list_targets()), key=len, reverse=True)))
    found, used = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("backends/"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            allowed = {(file, text) for file, text in ALLOWED if file == name and text in line}
            used |= allowed
            if RUNTIME.search(targets.sub("", line)) and not allowed:
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
    assert used == set(ALLOWED), "no longer there; take it from the list"


def test_a_name_would_be_found() -> None:
    for line in ('if backend == "tvm":', "from edgevit.backends import onnxruntime", "an ORT file", "ONNX Runtime's"):
        assert RUNTIME.search(line)
    assert not RUNTIME.search("report the sort of onnx graph")
