"""A part of a ViT is one file name in three rooms: torch, ONNX, and the kernels of TVM."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import edgevit
from edgevit.onnx_form import assemble
from edgevit.program.spec import StemKind
from edgevit.torch_form import vit
from tests.backends.tvm.available import import_or_skip

PACKAGE = Path(edgevit.__file__).parent
PARTS = {"patch_stem", "t2t_stem", "attention", "ffn", "gate", "head"}
# What joins the parts of a room, and what its parts are made of; any other file is a part.
JOINS = {
    "torch_form": {"vit", "layers", "stream", "eager"},
    "onnx_form": {"assemble", "layers", "linear", "graph", "check"},
    "backends/tvm/parts": {"stages", "stage"},
}


def parts(room: str) -> set[str]:
    return {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"} - JOINS[room]


def functions(path: Path) -> set[str]:
    """The public functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


@pytest.mark.parametrize("room", JOINS)
def test_a_room_has_every_part(room: str) -> None:
    every = set.union(*(parts(other) for other in JOINS))
    assert every >= PARTS
    missing = every - parts(room)
    assert not missing, f"edgevit/{room} lacks {missing}, which other rooms have"


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_has_the_same_function_in_every_room(name: str) -> None:
    shared = set.intersection(*(functions(PACKAGE / room / f"{name}.py") for room in JOINS))
    expected = {"patch_stem": "embed", "t2t_stem": "embed", "attention": "mhsa"}.get(name, name)
    assert expected in shared


def test_every_kind_of_stem_is_in_every_form() -> None:
    kinds = set(get_args(StemKind))
    assert set(vit.STEMS) == set(assemble.STEMS) == kinds
    import_or_skip()
    from edgevit.backends.tvm.parts import stages

    assert set(stages.STEMS) == kinds
