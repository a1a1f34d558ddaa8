"""Who may import whom: the torch side, the numpy side, the device side, and siblings that never meet."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgevit

PACKAGE = Path(edgevit.__file__).parent
MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
TORCH_FILES = {
    "models/catalogue.py",
    "models/refusal.py",
    "models/trial.py",
    "models/from_timm.py",
    "models/vit.py",
    "models/t2t.py",
    "models/ops.py",
    "models/stream.py",
    "models/checkpoint.py",
    "models/fit.py",
    "models/grid.py",
    "models/jax_names.py",
    "models/naming.py",
    "models/own_weights.py",
    "models/torch_file.py",
    "models/transformers_models.py",
    "models/transformers_names.py",
}
TORCH_ROOMS = {"prune", "gate", "train"}
HEAVY = {"torch", "timm", "torchvision"}
ROOMS = {
    "models",
    "data",
    "prune",
    "gate",
    "train",
    "quantize",
    "lower",
    "verify",
    "bound",
    "backends",
    "measure",
    "bundle",
    "report",
    "device",
}
# The Program and the images are values that pass between stages, not stages.
VALUES = {"models", "data"}


def imported(path: Path, *, at_module_level: bool = False) -> set[str]:
    """Names of the modules that a file imports; those under TYPE_CHECKING do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path} imports relatively, which hides from this test"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def room(module: str) -> str:
    return module.split("/")[0] if "/" in module else ""


@pytest.mark.parametrize("module", MODULES)
def test_the_numpy_side_imports_no_torch(module: str) -> None:
    torch_side = module in TORCH_FILES or room(module) in TORCH_ROOMS
    heavy = {name.split(".")[0] for name in imported(PACKAGE / module)} & HEAVY
    assert torch_side or not heavy, f"edgevit/{module} imports {heavy}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ROOMS])
def test_siblings_never_import_each_other(module: str) -> None:
    own = room(module)
    others = {
        name.split(".")[1] for name in imported(PACKAGE / module) if name.startswith("edgevit.") and name.count(".")
    }
    met = (others & ROOMS) - {own} - VALUES
    assert not met, f"edgevit/{module} imports its siblings {sorted(met)}; edgevit/pipeline.py wires stages"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ROOMS])
def test_stages_know_neither_the_pipeline_nor_the_command_line(module: str) -> None:
    above = {"edgevit.pipeline", "edgevit.job", "edgevit.proof", "edgevit.cli", "edgevit.facts", "edgevit.predict"}
    assert not imported(PACKAGE / module) & above


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("cli/")])
def test_commands_import_what_is_heavy_on_demand(module: str) -> None:
    at_once = {name.split(".")[0] for name in imported(PACKAGE / module, at_module_level=True)}
    assert not at_once & {"numpy", "onnx", "onnxruntime", "torch", "timm", "rich", "openvino"}


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocker())
import {modules}
"""


def blocked_import(names: set[str], modules: str) -> subprocess.CompletedProcess[str]:
    program = BLOCKED.format(names=sorted(names), modules=modules)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_the_device_side_runs_without_torch_timm_and_onnx() -> None:
    modules = (
        "edgevit.ondevice, edgevit.onboard, edgevit.bundle.read, edgevit.measure.run, edgevit.measure.probe, "
        "edgevit.measure.trace, "
        "edgevit.backends.onnxruntime, edgevit.backends.openvino, edgevit.data.images, edgevit.report.view"
    )
    done = blocked_import({"torch", "timm", "onnx"}, modules)
    assert not done.returncode, done.stderr


def test_building_a_program_needs_no_torch() -> None:
    done = blocked_import({"torch", "timm", "torchvision"}, "edgevit.pipeline, edgevit.job, edgevit.models.resolve")
    assert not done.returncode, done.stderr


def test_the_blocker_blocks() -> None:
    assert blocked_import({"numpy"}, "edgevit.models.program").returncode
