from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.backends import OnnxBackend, backend, onnx_backend, onnx_backends, onnxruntime
from edgevit.backends.reference import reference_with_margins
from edgevit.errors import BundleError, ImagesError, OutputError, RuntimeMissingError
from edgevit.onnx_form.assemble import assemble, detached
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

PROGRAM = tiny_program(gated=True, skip=True)
IMAGES = tiny_images(PROGRAM.spec, 4)
EFFORTS = (0.0, 0.7, -0.7, float("inf"), float("-inf"), 1e9, -1e9)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def int8_model() -> onnx.ModelProto:
    return assemble(PROGRAM, tiny_plan(PROGRAM))


@pytest.fixture(params=onnx_backends())
def runtime(request: pytest.FixtureRequest) -> OnnxBackend:
    return onnx_backend(request.param)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_both_runtimes_compute_the_same_float_function(tmp_path: Path) -> None:
    model = assemble(PROGRAM)
    runners = []
    for name in onnx_backends():
        folder = tmp_path / name
        folder.mkdir()
        onnx_backend(name).compile(model, folder)
        runners.append(onnx_backend(name).load(folder))
    seen = set()
    for image in IMAGES[:, None]:
        for effort in EFFORTS:
            (logits, gates), (other_logits, other_gates) = (r.run(image, effort) for r in runners)
            np.testing.assert_allclose(logits, other_logits, atol=2e-5)
            np.testing.assert_array_equal(gates, other_gates)
            assert logits.dtype == np.float32 and logits.shape == (1, 10)
            assert gates.dtype == np.uint8 and gates.shape == (4,)
            seen.add(tuple(gates))
    assert {(0, 0, 0, 0), (1, 1, 1, 1)} < seen


def test_int8_stays_near_float(runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    logits = []
    for name, model in (("float", assemble(PROGRAM)), ("int8", int8_model)):
        (tmp_path / name).mkdir()
        runtime.compile(model, tmp_path / name)
        runner = runtime.load(tmp_path / name)
        logits.append(np.concatenate([runner.run(i, 1e9)[0] for i in IMAGES[:, None]]).ravel())
    cosine = logits[0] @ logits[1] / np.linalg.norm(logits[0]) / np.linalg.norm(logits[1])
    assert 0.99 < cosine < 0.99999


def test_outputs_are_not_overwritten_by_the_next_run(
    runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path
) -> None:
    runtime.compile(int8_model, tmp_path)
    runner = runtime.load(tmp_path)
    logits, gates = runner.run(IMAGES[:1], 1e9)
    kept = logits.copy(), gates.copy()
    runner.run(IMAGES[1:2], -1e9)
    np.testing.assert_array_equal(logits, kept[0])
    np.testing.assert_array_equal(gates, kept[1])
    runner.close()


def test_every_format_computes_the_same(int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    runtime = onnx_backend("onnxruntime")
    assert runtime.compile(int8_model, tmp_path) == ("model.onnx", "model.onnx.data", "model.ort")
    ours, ort = runtime.load(tmp_path), runtime.load(tmp_path, file="model.ort")
    for image in IMAGES[:, None]:
        for effort in EFFORTS:
            for one, other in zip(ours.run(image, effort), ort.run(image, effort), strict=True):
                np.testing.assert_array_equal(one, other)


def test_only_the_formats_asked_for_are_written(int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    assert onnx_backend("onnxruntime").compile(int8_model, tmp_path, formats=("ort",)) == ("model.ort",)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ort"]
    assert onnx_backend("onnxruntime").load(tmp_path).run(IMAGES[:1])[0].shape == (1, 10)


def test_large_weights_lie_outside_the_graph_file(int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx_backend("onnxruntime").compile(int8_model, tmp_path, formats=("onnx",))
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    bodies = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    inside = {t.name: len(t.raw_data) for g in (graph, *bodies) for t in g.initializer}
    assert max(inside.values()) < 1024 and inside["stem/w_q"] == inside["b00_ffn.fc1/w_q"] == 0
    assert (tmp_path / "model.onnx.data").stat().st_size > sum(inside.values())


def test_compile_leaves_the_model_as_it_was(runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    before = int8_model.SerializeToString(deterministic=True)
    runtime.compile(int8_model, tmp_path)
    assert int8_model.SerializeToString(deterministic=True) == before


def test_two_builds_give_equal_bytes(runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    source, one = tmp_path / "m.onnx", tmp_path / "one"
    source.write_bytes(int8_model.SerializeToString())
    one.mkdir()
    files = runtime.compile(int8_model, one)
    assert sorted(files) == sorted(digests(one))
    again = tmp_path / "again"
    again.mkdir()
    runtime.compile(int8_model, again)
    assert digests(again) == digests(one)
    # Another process: other hash seeds, other addresses, other counters.
    other = tmp_path / "a" / "longer" / "path"
    other.mkdir(parents=True)
    code = (
        f"import onnx, pathlib; from edgevit.backends import backend, onnx_backend; m = onnx.load({str(source)!r});"
        f"onnx_backend({runtime.NAME!r}).compile(m, pathlib.Path({str(other)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert digests(other) == digests(one)


def test_files_name_no_local_path(runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    for name in runtime.compile(int8_model, tmp_path):
        content = (tmp_path / name).read_bytes()
        assert str(tmp_path).encode() not in content and b"/tmp/" not in content and str(ROOT).encode() not in content


def test_loading_needs_neither_torch_nor_onnx(
    runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path
) -> None:
    runtime.compile(int8_model, tmp_path)
    code = (
        "import sys\nfor name in ('torch', 'timm', 'onnx', 'safetensors', 'click', 'rich'): sys.modules[name] = None\n"
        "import pathlib, numpy as np\nfrom edgevit.backends import backend, onnx_backend\n"
        f"r = onnx_backend({runtime.NAME!r}).load(pathlib.Path({str(tmp_path)!r}))\n"
        "print(r.run(np.zeros((1, 32, 32, 3), np.uint8), float('inf'))[1].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[1, 1, 1, 1]", done.stderr
    assert done.stderr == ""


def test_the_plain_twin_has_no_effort(runtime: OnnxBackend, tmp_path: Path) -> None:
    # Its last FFN, one token row wide, is also what crashes OpenVINO's fusion of small MLPs where that is left on.
    runtime.compile(assemble(PROGRAM, gating="open"), tmp_path)
    runner = runtime.load(tmp_path)
    (logits, gates), (other, _) = runner.run(IMAGES[:1]), runner.run(IMAGES[:1], -1e9)
    np.testing.assert_array_equal(logits, other)
    assert gates.tolist() == [1, 1, 1, 1]


def test_kernels_are_counted_in_branch_bodies_too(int8_model: onnx.ModelProto) -> None:
    found = onnx_backend("onnxruntime").linear_kernels(int8_model)
    assert len(found) == 14 and all(int8 for _, int8 in found)
    mixed = assemble(PROGRAM, tiny_plan(PROGRAM, floats=("b01_ffn.fc2",)))
    assert [n for n, int8 in onnx_backend("onnxruntime").linear_kernels(mixed) if not int8] == ["b01_ffn.fc2/w"]


def test_openvino_kernels_are_counted_on_the_twin() -> None:
    twin = assemble(PROGRAM, tiny_plan(PROGRAM, floats=("b01_ffn.fc2",)), gating="open")
    found = {n.split("/")[0]: int8 for n, int8 in onnx_backend("openvino").linear_kernels(twin)}
    assert not found["b01_ffn.fc2"] and found["b00_mhsa.qkv"] and found["head"]


def test_executed_nodes_stop_at_closed_gates(int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    onnxruntime.compile(int8_model, tmp_path)
    (on, all_ones), (off, zeros) = (onnxruntime.executed(tmp_path, IMAGES[:1], e) for e in (1e9, -1e9))
    assert (all_ones.tolist(), zeros.tolist()) == ([1] * 4, [0] * 4)
    opened, closed = dict(on), dict(off)
    assert opened["b01_ffn.fc1/y"] == "QGemm" and "b01_ffn/skipped" not in opened
    assert "b01_ffn.fc1/y" not in closed and "b01_ffn/skipped" in closed


@pytest.mark.parametrize("image", [np.zeros((1, 32, 31, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)])
def test_wrong_images_are_refused(
    runtime: OnnxBackend, int8_model: onnx.ModelProto, image: np.ndarray, tmp_path: Path
) -> None:
    runtime.compile(int8_model, tmp_path)
    runner = runtime.load(tmp_path)
    with pytest.raises(ImagesError, match=r"uint8 RGB image of shape \[1, 32, 32, 3\], got"):
        runner.run(image)
    with pytest.raises(ValueError, match="effort must be a number"):
        runner.run(IMAGES[:1], float("nan"))


def test_missing_and_damaged_files_are_named(runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no model"):
        runtime.load(tmp_path)
    for name in runtime.compile(int8_model, tmp_path):
        if name.endswith((".onnx", ".xml", ".ort")):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
            with pytest.raises(BundleError, match=f"cannot load .*{name}"):
                runtime.load(tmp_path, file=name)


def test_an_unknown_precision_is_refused(runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path) -> None:
    runtime.compile(int8_model, tmp_path)
    with pytest.raises(BundleError, match="'f8'"):
        runtime.load(tmp_path, precision="f8")


def test_a_folder_that_cannot_be_written_is_named(
    runtime: OnnxBackend, int8_model: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="cannot write the model"):
        runtime.compile(int8_model, tmp_path / "absent")


def test_a_missing_runtime_says_how_to_install_it(runtime: OnnxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.versions()[runtime.NAME][0].isdigit()
    monkeypatch.setitem(sys.modules, runtime.NAME, None)
    with pytest.raises(RuntimeMissingError, match="pip install"):
        runtime.versions()


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(RuntimeMissingError, match="'tensorrt'; known: onnxruntime, openvino, tvm"):
        backend("tensorrt")
    with pytest.raises(RuntimeMissingError, match="'tvm' that reads ONNX; known: onnxruntime, openvino"):
        onnx_backend("tvm")


def test_8_bit_weights_in_branches_are_exact_on_any_cpu(tmp_path: Path) -> None:
    program = tiny_program(gated=True, dim=64, hidden=256, seed=3)
    model = assemble(program, replace(tiny_plan(program), weight_bits=8))
    onnx_backend("onnxruntime").compile(model, tmp_path, formats=("onnx",))
    runner, exact = (
        onnx_backend("onnxruntime").load(tmp_path, weight_bits=8),
        reference_with_margins(model, optimised=False),
    )
    for image in tiny_images(program.spec, 4)[:, None]:
        expected = exact(image, 1e9)[0]
        # One rounding step of a quantized input may tip over between two kernels.
        np.testing.assert_allclose(runner.run(image, 1e9)[0], expected, atol=0.05 * float(np.abs(expected).max()))


def test_int8_weights_move_into_the_body_that_uses_them(int8_model: onnx.ModelProto) -> None:
    moved = onnxruntime.localise(int8_model)
    onnx.checker.check_model(moved, full_check=True)
    left = {t.name for t in moved.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert {name for name in left if name.endswith("/w_q")} == {"stem/w_q", "head/w_q"}
    body = next(a.g for n in moved.graph.node if n.name == "b00_ffn/y" for a in n.attribute if a.name == "then_branch")
    assert {"b00_ffn.fc1/w_q", "b00_ffn.fc2/w_q"} <= {t.name for t in body.initializer}


def test_the_bytes_of_a_model_are_known_without_writing_it() -> None:
    program = tiny_program(gated=True, dim=64)
    graph, data = onnxruntime.externalise(assemble(program))
    assert onnxruntime.written_bytes(*detached(program)) == len(graph) + len(data)


def test_a_signal_is_handled_after_models_ended_in_any_order(runtime: OnnxBackend, tmp_path: Path) -> None:
    runtime.compile(assemble(PROGRAM), tmp_path)
    code = (
        "import pathlib, signal; from edgevit.backends import backend, onnx_backend\n"
        f"models = [onnx_backend({runtime.NAME!r}).load(pathlib.Path({str(tmp_path)!r})) for _ in range(2)]\n"
        "del models[0], models[0]\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
