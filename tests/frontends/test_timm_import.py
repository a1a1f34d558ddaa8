from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgevit.errors import RuntimeMissingError
from edgevit.frontends import timm_import


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_timm_and_torchvision_are_imported() -> None:
    assert timm_import.timm.is_model("vit_tiny_patch16_224")
    assert torch.ops.torchvision.nms is not None
    assert "torchvision" in sys.modules


def test_declaring_twice_is_the_same_as_once() -> None:
    before = list(timm_import._declared)
    timm_import.declare_ops()
    assert timm_import._declared == before


def test_a_library_that_does_not_load_counts_as_absent(tmp_path: Path) -> None:
    assert not timm_import.compiled_ops_load(tmp_path)
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert not timm_import.compiled_ops_load(tmp_path)


def test_nothing_is_declared_over_compiled_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses a second definition, so a declaration here would raise."""
    monkeypatch.setattr(timm_import, "_declared", [])
    monkeypatch.setattr(timm_import, "compiled_ops_load", lambda folder: True)
    timm_import.declare_ops()
    assert timm_import._declared == []


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_is_told_with_its_install_command(package: str) -> None:
    # An import hook, because a None in sys.modules makes find_spec itself fail.
    code = f"""
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find(name, path=None, target=None):
    if name.partition('.')[0] == {package!r}:
        return None
    return real(name, path, target)
importlib.machinery.PathFinder.find_spec = find
from edgevit.errors import RuntimeMissingError
try:
    import edgevit.frontends.timm_import
except RuntimeMissingError as error:
    print(error)
"""
    message = run(code)
    assert f"{package} is not installed" in message and "edgevit[train]" in message
    assert RuntimeMissingError.exit_code == 18
