"""The memory settings do what they say, in a fresh process: the arena is one per process."""

import json
import subprocess
import sys
from pathlib import Path

from edgevit.backends.onnxruntime import compile, memory
from edgevit.onnx_form.assemble import assemble
from tests.tiny import tiny_program

SCRIPT = """
import json, sys
import numpy as np
from pathlib import Path
from edgevit.backends.onnxruntime import memory
ort = memory.runtime()
options = ort.SessionOptions()
options.log_severity_level = 4
options.enable_profiling = True
options.profile_file_prefix = str(Path.cwd() / "p")
if sys.argv[2] == "ours":
    memory.configure(options)
    memory.configure(options)
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
for _ in range(2):
    session.run(None, {"image": np.zeros((1, 64, 64, 3), np.uint8)})
events = json.loads(Path(session.end_profiling()).read_text())
keys = ("mem_bytes_in_use", "mem_bytes_requested_in_use", "mem_in_use_peak")
print(json.dumps([[int(e["args"][k]) for k in keys] for e in events if "mem_in_use_peak" in e.get("args", {})]))
"""


def run(model: Path, kind: str) -> list[list[int]]:
    root = Path(memory.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), kind],
        cwd=model.parent,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return [list(map(int, entry)) for entry in json.loads(done.stdout)]


def test_settings_hold_less_and_waste_nothing_inside_a_chunk(tmp_path: Path) -> None:
    program = tiny_program(depth=3, dim=96, heads=3, image=(64, 64), patch=4)
    compile(assemble(program), tmp_path, formats=("onnx",))
    ours, default = (run(tmp_path / "model.onnx", kind) for kind in ("ours", "default"))
    assert max(peak for _, _, peak in ours) < 0.7 * max(peak for _, _, peak in default)
    unit, tensors = memory.ARENA_UNIT_BYTES, 16
    assert all(0 <= in_use - requested < unit * tensors for in_use, requested, _ in ours)
    assert max(in_use - requested for in_use, requested, _ in default) > unit * tensors
