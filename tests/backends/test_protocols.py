"""Every backend offers what the protocols ask; that types fit, mypy sees by the assignments below."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from edgevit.backends import MODULES, Backend, Desk, OnnxBackend, backend, desk, onnxruntime, openvino, tvm
from edgevit.backends.native import NativeBackend, native_backend
from edgevit.backends.onnxruntime import desk as onnxruntime_desk
from edgevit.backends.openvino import desk as openvino_desk
from edgevit.backends.tvm import desk as tvm_desk
from edgevit.errors import RuntimeMissingError
from tests.backends import dummy
from tests.backends.dummy import desk as dummy_desk

BACKENDS: tuple[Backend, ...] = (onnxruntime, openvino, tvm, dummy)
READ_ONNX: tuple[OnnxBackend, ...] = (onnxruntime, openvino)
NATIVE: tuple[NativeBackend, ...] = (tvm,)
DESKS: tuple[Desk, ...] = (onnxruntime_desk, openvino_desk, tvm_desk, dummy_desk)


def asked(protocol: type) -> set[str]:
    members = {name for name, _ in inspect.getmembers(protocol, inspect.isfunction)} | set(protocol.__annotations__)
    return {name for name in members if not name.startswith("_")}


@pytest.mark.parametrize("module", [*BACKENDS, *DESKS], ids=lambda module: module.__name__)
def test_a_backend_offers_what_is_asked(module: ModuleType) -> None:
    protocol = Desk if module.__name__.endswith(".desk") else Backend
    assert {name for name in asked(protocol) if not hasattr(module, name)} == set()
    assert len(asked(protocol)) >= 7


def test_what_a_backend_says_of_itself_holds() -> None:
    for name in MODULES:
        found = backend(name)
        assert name == found.NAME and found.FILES and found.INSTALL.startswith("pip install ")
        assert callable(getattr(found, "compile", None)) == found.READS_ONNX
        assert hasattr(found, "program") == found.NATIVE
        assert (desk(name).GATE_MS == 0) == found.READS_ONNX


def test_only_machine_code_has_a_program_of_its_own() -> None:
    assert native_backend("tvm").NAME == "tvm"
    with pytest.raises(RuntimeMissingError, match="builds for onnxruntime have no program of their own.*: tvm"):
        native_backend("onnxruntime")
