"""What runtimes refuse in a target: said when it is read, with all other faults, and before anything is built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgevit import pipeline
from edgevit.backends import tvm
from edgevit.backends.targets import accept, following_costs, load_target
from edgevit.backends.tvm.run.runner import MOST_THREADS
from edgevit.build.prediction import predict
from edgevit.build.preflight import ready
from edgevit.cli import main
from edgevit.errors import TargetError
from edgevit.schema.target import Target, list_targets
from edgevit.util.resources import shipped
from tests.building import RECIPE, image_set
from tests.schema.test_target import write
from tests.tiny import tiny_program


@pytest.mark.parametrize("name", list_targets())
def test_shipped_targets_are_accepted(name: str) -> None:
    target = load_target(name)
    assert accept(target) is target


def test_contradictions_are_faults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        ('formats = ["onnx"]', 'formats = ["ir"]'),
        ('inference_precision = "f32"', 'inference_precision = "bf16"'),
        ("min_agreement = 0.95", "min_agreement = 1.5"),
    )
    with pytest.raises(TargetError, match="3 faults"):
        load_target(path)


def test_an_unknown_runtime_is_a_fault_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="1 fault:\n  - backend: got 'onnxrt', allowed: 'onnxruntime', 'openvino'"):
        load_target(write(tmp_path, ('backend = "onnxruntime"', 'backend = "onnxrt"')))


def test_a_target_without_a_format_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="1 fault:\n  - formats: got \\[\\], allowed for onnxruntime"):
        load_target(write(tmp_path, ('formats = ["onnx"]', "formats = []")))


def test_weights_are_rounded_for_four_products_only_where_kernels_add_them(tmp_path: Path) -> None:
    assert load_target("x86-64-v3-tvm").int16_products == 4 and load_target("cortex-a53-tvm").int16_products == 2
    refused = (
        ("x86-64-avx2-onnxruntime", "weight_bits = 7", "int16_products: got 4, allowed for onnxruntime on x86_64"),
        ("cortex-a72-tvm", "weight_bits = 8", "int16_products: got 4, allowed for tvm on aarch64"),
        ("x86-64-avx512vnni-tvm", "weight_bits = 8", "int16_products: got 4 with 8 weight_bits and uint8 activations"),
    )
    for name, line, message in refused:
        text = (shipped("targets") / f"{name}.toml").read_text()
        (tmp_path / f"{name}.toml").write_text(text.replace(line, f"{line}\nint16_products = 4", 1))
        with pytest.raises(TargetError, match=re.escape(message)):
            load_target(tmp_path / f"{name}.toml")


def test_attention_is_int8_where_its_kernels_are(tmp_path: Path) -> None:
    text = (shipped("targets") / "x86-64-v3-tvm.toml").read_text(encoding="utf-8")
    text = text.replace('name = "x86-64-v3-tvm"', 'name = "mine"').replace('attention = "int8"\n', "", 1)
    path, with_it = tmp_path / "mine.toml", text.replace("threads = 1\n", 'threads = 1\nattention = "int8"\n', 1)
    path.write_text(with_it)
    assert load_target(path).attention == "int8"
    path.write_text(with_it.replace("int8 = true\n", "int8 = false\n"))
    with pytest.raises(
        TargetError, match="1 fault:\n  - attention: got 'int8', allowed for tvm with int8 = false: 'float32'"
    ):
        load_target(path)
    with pytest.raises(TargetError, match="attention: got 'int8', allowed for onnxruntime with int8 = true: 'float32'"):
        load_target(write(tmp_path, ("threads = 1\n", 'threads = 1\nattention = "int8"\n')))


def test_a_tvm_target_may_have_threads(tmp_path: Path) -> None:
    text = (shipped("targets") / "x86-64-v3-tvm.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "x86-64-v3-tvm"', 'name = "mine"').replace("threads = 1\n", "threads = 2\n"))
    assert load_target(path).threads == 2


def test_a_tvm_target_has_no_more_threads_than_its_runner_takes(tmp_path: Path) -> None:
    manifest = (Path(tvm.__file__).parent / "cxx" / "manifest.h").read_text(encoding="utf-8")
    assert f"kMostThreads = {MOST_THREADS};" in manifest
    text = (shipped("targets") / "x86-64-v3-tvm.toml").read_text()
    path = tmp_path / "x86-64-v3-tvm.toml"
    path.write_text(re.sub("^threads = .*$", "threads = 65", text, count=1, flags=re.MULTILINE))
    with pytest.raises(TargetError, match="threads: got 65, allowed for tvm: 1 to 64"):
        load_target(path)


@pytest.mark.parametrize("cpu", ["generic -libs=x", "", "a" * 65, "x86-64\\n", "-mcpu='a b'"])
def test_a_cpu_is_one_name(cpu: str, tmp_path: Path) -> None:
    text = (shipped("targets") / "x86-64-v3-tvm.toml").read_text()
    (tmp_path / "x86-64-v3-tvm.toml").write_text(
        re.sub("^cpu = .*$", lambda _: f'cpu = "{cpu}"', text, count=1, flags=re.M)
    )
    with pytest.raises(TargetError, match="1 fault:\n  - cpu: got"):
        load_target(tmp_path / "x86-64-v3-tvm.toml")


WRONG = (
    ("x86-64-v3-tvm", {"cpu": "i486"}, "no CPU 'i486'"),
    ("x86-64-v3-tvm", {"cpu": None}, "cpu: missing"),
    ("x86-64-v3-tvm", {"requires_flags": ("sse2",)}, "no kernels for"),
    ("x86-64-v3-tvm", {"threads": 65}, "threads: got 65"),
    ("x86-64-onnxruntime", {"cpu": "skylake"}, "cpu: got 'skylake'; onnxruntime takes none"),
    ("x86-64-onnxruntime", {"inference_precision": "bf16"}, "inference_precision: got 'bf16'"),
    ("x86-64-openvino", {"formats": ("onnx",)}, "formats: got \\['onnx'\\], allowed for openvino: \\['ir'\\]"),
    ("x86-64-openvino", {"backend": "other"}, "backend: got 'other'"),
)


@pytest.mark.parametrize(("name", "changes", "said"), WRONG)
def test_what_a_runtime_refuses_is_said_before_anything_slow(
    name: str, changes: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "quantize", lambda *_: pytest.fail("began to quantize"))
    wrong: Target = replace(load_target(name), **changes)  # type: ignore[arg-type]
    program = tiny_program()
    with pytest.raises(TargetError, match=said):
        ready(target=wrong)
    with pytest.raises(TargetError, match=said):
        predict(program, wrong)
    with pytest.raises(TargetError, match=said):
        pipeline.build(program, wrong, image_set(program), tmp_path / "bundle", recipe=RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_wrong_cpu_is_refused_by_the_command_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "quantize", lambda *_: pytest.fail("began to quantize"))
    path = tmp_path / "x86-64-v3-tvm.toml"
    text = (shipped("targets") / path.name).read_text(encoding="utf-8")
    path.write_text(re.sub("^cpu = .*$", 'cpu = "pentium"', text, count=1, flags=re.MULTILINE))
    for arguments in (["targets", str(path)], ["build", "--target", str(path), "-o", str(tmp_path / "out")]):
        assert main(arguments) == TargetError.exit_code
        assert "no CPU 'pentium'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokens", ["1:0-4@0.8", "1:4"])
@pytest.mark.parametrize("name", ["x86-64-openvino", "x86-64-onnxruntime", "x86-64-v3-tvm"])
def test_what_saves_no_time_is_told(name: str, tokens: str) -> None:
    """Only of a runtime with kernels for fixed shapes, and only where the number of tokens follows the image."""
    costs = following_costs(load_target(name), tiny_program(depth=3, tokens=tokens).spec)
    assert bool(costs) == (name == "x86-64-openvino" and "@" in tokens)
    if costs:
        assert "look alike in an image, which saves no time with x86-64-openvino. OpenVINO prepares its" in costs
        assert "Take a target of onnxruntime, tvm, or merge a fixed number with --tokens" in costs
