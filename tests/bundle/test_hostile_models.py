"""Bundles whose graphs mean harm and whose hashes fit: one message and an exit code of the table, within the limits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.cli import main
from edgevit.errors import BundleError, ParityError
from tests import hostile
from tests.bundles import sample_bundle
from tests.devices.board import processes_of

TIMEOUT_S, FILLED_S = "10", "60"


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("genuine")
    return {name: sample_bundle(folder / name, runtime=name) for name in ("onnxruntime", "openvino")}


@pytest.fixture
def bundle(genuine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(genuine["onnxruntime"], tmp_path / "tiny"))


@pytest.fixture
def openvino(genuine: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(genuine["openvino"], tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this test alone."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def told(arguments: list[str], temporary: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of a command that leaves nothing behind."""
    before = processes_of(os.getpid())
    code = main(arguments)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("edgevit: ") and "edgevit: note:" not in line]
    assert "Traceback" not in said and len(lines) == (code != 0), said
    assert list(temporary.iterdir()) == [] and processes_of(os.getpid()) == before
    return code, said


@pytest.mark.parametrize("name", hostile.GRAPHS)
def test_a_graph_that_means_harm_is_one_error(
    name: str, bundle: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.put(bundle, hostile.GRAPHS[name]())
    assert main(["verify", str(bundle)]) == 0  # as data it is whole
    capsys.readouterr()
    greedy = name in ("fills 32 GiB", "expands to 32 GiB", "doubles for ever")
    # Beside other work gigabytes take a while to fill.
    timeout = FILLED_S if greedy else TIMEOUT_S
    code, said = told(["verify", str(bundle), "--run", "--timeout", timeout], temporary, capsys)
    assert code == BundleError.exit_code, said
    if greedy:
        assert re.search(r"needs more memory than the \d+ MiB", said)


def test_a_graph_that_never_ends_is_ended(bundle: Path, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile.put(bundle, hostile.endless())
    code, said = told(["verify", str(bundle), "--run", "--timeout", "4"], temporary, capsys)
    assert code == BundleError.exit_code and f"the model of {bundle} did not load and run within 4 s" in said
    code, said = told(["profile", str(bundle), "--runs", "2", "--timeout", "4"], temporary, capsys)
    assert code == BundleError.exit_code and "did not load and run within 4 s" in said
    assert not bundle.with_name("tiny.measurement.json").exists()


@pytest.mark.parametrize("made", [hostile.if_bomb, hostile.chain], ids=["4096 branches", "100,000 nodes"])
def test_a_large_graph_that_loads_is_only_another_model(
    made: Callable[[], bytes], bundle: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.put(bundle, made())
    code, said = told(["verify", str(bundle), "--run", "--timeout", TIMEOUT_S], temporary, capsys)
    assert code in (BundleError.exit_code, ParityError.exit_code), said


def test_data_that_overlaps_is_only_another_model(
    bundle: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.put(bundle, hostile.external("model.onnx.data", offset="0", length="64"))
    assert told(["verify", str(bundle), "--run"], temporary, capsys)[0] == ParityError.exit_code


def test_profile_refuses_it_as_verify_does(bundle: Path, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile.put(bundle, hostile.filled())
    code, said = told(["profile", str(bundle), "--runs", "2"], temporary, capsys)
    assert code == BundleError.exit_code and "needs more memory than" in said
    assert not bundle.with_name("tiny.measurement.json").exists()


def changed(text: str, pattern: str, new: str) -> str:
    found = re.search(pattern, text)
    assert found
    return text[: found.start()] + re.sub(pattern, new, found[0]) + text[found.end() :]


XML: dict[str, Callable[[str], str]] = {
    "an offset beyond the end": lambda text: changed(text, r' offset="\d+"', f' offset="{1 << 40}"'),
    "an offset below zero": lambda text: changed(text, r' offset="\d+"', ' offset="-64"'),
    "an offset of 400 digits": lambda text: changed(text, r' offset="\d+"', f' offset="{"9" * 400}"'),
    "a size beyond the end": lambda text: changed(text, r' size="\d+"', f' size="{1 << 40}"'),
    "a size of all bits": lambda text: changed(text, r' size="\d+"', f' size="{(1 << 64) - 1}"'),
    "an absurd shape": lambda text: changed(text, r' shape="[^"]*"', f' shape="{1 << 40}, {1 << 40}"'),
    "an unknown layer": lambda text: changed(text, r' type="MatMul"', ' type="Evil"'),
    "100,000 elements in each other": lambda text: text.replace("<layers>", "<layers>" + "<a>" * 100_000),
    "balanced elements in each other": lambda text: text.replace(
        "</layers>", f"{'<layer>' * 100_000}{'</layer>' * 100_000}</layers>"
    ),
    "entities of entities": lambda text: '<!DOCTYPE net [<!ENTITY a "&b;&b;"><!ENTITY b "xx">]>' + text,
    "edges in a circle": lambda text: changed(
        text,
        r'<edge from-layer="(\d+)" from-port="\d+" to-layer="(\d+)"',
        r'<edge from-layer="\2" from-port="1" to-layer="\1"',
    ),
    "nothing": lambda _: "",
}


@pytest.mark.parametrize("name", XML)
def test_an_ir_that_means_harm_is_one_error(
    name: str, openvino: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (openvino / "model/model.xml").read_text(encoding="utf-8")
    hostile.put(openvino, XML[name](text).encode(), "model/model.xml")
    code, said = told(["verify", str(openvino), "--run", "--timeout", TIMEOUT_S], temporary, capsys)
    allowed = (0, ParityError.exit_code) if name == "entities of entities" else ()
    assert code in (BundleError.exit_code, *allowed), said


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "runner/run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["fills 32 GiB", "no logits", "unknown operator", "data outside"])
def test_the_bundles_own_runner_ends_with_one_line(name: str, bundle: Path) -> None:
    hostile.put(bundle, hostile.GRAPHS[name]())
    done = run(bundle, "--check")
    assert done.returncode == BundleError.exit_code
    assert done.stderr.startswith("this bundle is damaged: its model does not run (") and "Traceback" not in done.stderr
    assert done.stderr.count("this bundle is damaged") == 1
    assert ("needs more memory" in done.stderr) == (name == "fills 32 GiB")


def test_the_bundles_own_runner_ends_what_never_does(bundle: Path) -> None:
    source = (bundle / "runner/run.py").read_text(encoding="utf-8")
    assert "\nRUN_SECONDS = 600 " in source
    hostile.put(bundle, hostile.endless())
    hostile.put(bundle, source.replace("\nRUN_SECONDS = 600 ", "\nRUN_SECONDS = 3 ").encode(), "runner/run.py")
    done = run(bundle, "--check")
    assert done.returncode == BundleError.exit_code and done.stderr == (
        "this bundle is damaged: its model did not end within 3 s; copy it again\n"
    )
