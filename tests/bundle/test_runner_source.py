"""A bundle's own runner is one file: the common part and the part of its runtime, without a word of the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from edgevit.backends import MODULES, desk
from edgevit.bundle import runner
from edgevit.bundle.runner_source import COMMON, joined


@pytest.mark.parametrize("name", MODULES)
def test_every_runtime_gives_one_file_that_is_whole(name: str) -> None:
    source = desk(name).runner_source()
    assert source == desk(name).runner_source()
    tree = ast.parse(source)
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    assert "edgevit" not in imported
    assert imported & set(MODULES) == ({name} if name != "tvm" else set())
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(defined) == len(set(defined)) and {"main", "load_model", "lacks_vnni"} <= set(defined)
    code = source.lower()
    assert not [other for other in MODULES if other != name and other in code]


def test_the_common_part_alone_says_what_it_is() -> None:
    with pytest.raises(NotImplementedError, match="run the bundle's own runner/run.py"):
        runner.load_model({}, 1)
    assert runner.USED == ()


def test_a_part_takes_nothing_that_a_bundle_lacks(tmp_path: Path) -> None:
    part = tmp_path / "part.py"
    part.write_text('"""Doc."""\n\nfrom edgevit.util import text\n\nUSED = ()\n')
    with pytest.raises(ValueError, match="imports from edgevit"):
        joined(part)
    part.write_text('"""Doc."""\n\nimport json\nimport wave\n\nfrom edgevit.bundle.runner import Run\n\nUSED = ()\n')
    made = joined(part)
    assert "import wave" in made and made.count("\nimport json\n") == COMMON.read_text().count("\nimport json\n") == 1
