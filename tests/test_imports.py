"""Who may import torch, and what the device side and the numpy side run without; levels are held by `make lint`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgevit

PACKAGE = Path(edgevit.__file__).parent
MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
# Rooms whose files may import torch; `frontends` also reads what torch wrote.
TORCH_ROOMS = {"torch_form", "compress", "frontends"}
# Of the frontends, what a Program is found with works without torch.
NUMPY_FRONTENDS = {f"frontends/{name}.py" for name in ("hub_folder", "imagenet", "preprocessing", "resolve", "stated")}
HEAVY = {"torch", "timm", "torchvision"}


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
    torch_side = room(module) in TORCH_ROOMS and module not in NUMPY_FRONTENDS
    heavy = {name.split(".")[0] for name in imported(PACKAGE / module)} & HEAVY
    assert torch_side or not heavy, f"edgevit/{module} imports {heavy}"


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
        "edgevit.devices.local, edgevit.devices.remote, edgevit.devices.ssh.board, edgevit.bundle.read, "
        "edgevit.measure.run, edgevit.measure.probe, "
        "edgevit.measure.trace, edgevit.backends.onnxruntime.branch_times, edgevit.backends.openvino.branch_times, "
        "edgevit.backends.onnxruntime, edgevit.backends.openvino, edgevit.images.image_set, edgevit.report.view"
    )
    done = blocked_import({"torch", "timm", "onnx"}, modules)
    assert not done.returncode, done.stderr


def test_building_a_program_needs_no_torch() -> None:
    done = blocked_import(
        {"torch", "timm", "torchvision"}, "edgevit.pipeline, edgevit.api.build, edgevit.frontends.resolve"
    )
    assert not done.returncode, done.stderr


def test_the_blocker_blocks() -> None:
    assert blocked_import({"numpy"}, "edgevit.program.program").returncode
