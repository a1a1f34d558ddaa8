"""Without VNNI 8-bit weights are computed exactly, by slower kernels; 7-bit ones and VNNI take the fast ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edgevit.backends import onnx_backend, onnxruntime, openvino
from edgevit.backends.onnxruntime import shipped_runner
from edgevit.backends.reference import reference
from edgevit.onnx_form.assemble import assemble
from edgevit.util.machines import lacks_vnni
from tests.bundles import sample_bundle
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

CPUS = pytest.mark.parametrize(
    ("weight_bits", "lacks", "exact"), [(8, True, True), (8, False, False), (7, True, False), (7, False, False)]
)


@CPUS
def test_only_8_bit_weights_without_vnni_are_computed_as_written(
    monkeypatch: pytest.MonkeyPatch, weight_bits: int, lacks: bool, exact: bool
) -> None:
    monkeypatch.setattr(openvino, "lacks_vnni", lambda: lacks)
    assert openvino._exact(weight_bits) == ({"LP_TRANSFORMS_MODE": "NO"} if exact else {})


@CPUS
def test_onnx_runtime_takes_its_slow_kernels_only_where_the_fast_ones_saturate(
    monkeypatch: pytest.MonkeyPatch, weight_bits: int, lacks: bool, exact: bool
) -> None:
    monkeypatch.setattr(onnxruntime, "lacks_vnni", lambda: lacks)
    configured = onnxruntime.options(weight_bits=weight_bits)
    # The last entry is always there: it shows that a missing one is told apart.
    for key, value in (("session.x64quantprecision", exact), ("session.intra_op.allow_spinning", True)):
        try:
            found = configured.get_session_config_entry(key)
        except RuntimeError:
            found = ""
        assert bool(found) == value, key
    assert "session.x64quantprecision" not in onnxruntime.settings(weight_bits=weight_bits), "of a CPU, in a bundle"


@CPUS
def test_the_shipped_runner_decides_when_it_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weight_bits: int, lacks: bool, exact: bool
) -> None:
    folder = sample_bundle(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["target"]["weight_bits"] = weight_bits
    monkeypatch.setattr(shipped_runner, "ROOT", folder)
    monkeypatch.setattr(shipped_runner, "lacks_vnni", lambda: lacks)
    taken: dict[str, str] = {}

    class Watched(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            taken[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(ort, "SessionOptions", Watched)
    run = shipped_runner.load_model(manifest, 1)
    assert ("session.x64quantprecision" in taken) == exact
    image = np.load(folder / manifest["golden"][0]["image"])
    np.testing.assert_array_equal(run(image, 0.0)[0].shape, manifest["outputs"][0]["shape"])


@pytest.mark.parametrize("lacks", [False, True])
def test_cpu_flags_tell_whether_8_bit_products_overflow(monkeypatch: pytest.MonkeyPatch, lacks: bool) -> None:
    flags = "flags\t: avx2 fma" + ("" if lacks else " avx_vnni")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: flags)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert lacks_vnni() == lacks
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not lacks_vnni()


def test_computed_as_written_it_is_the_quantized_model_in_exact_arithmetic(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(openvino, "lacks_vnni", lambda: True)
    program = tiny_program(dim=64, hidden=256, seed=3)
    model = assemble(program, tiny_plan(program))
    openvino.compile(model, tmp_path)
    image = tiny_images(program.spec, 1)
    exact, _ = reference(model, exact=True).run(image)
    got, _ = onnx_backend("openvino").load(tmp_path, weight_bits=8).run(image)
    # A few rounding steps of quantized inputs may tip over between two float kernels.
    np.testing.assert_allclose(got, exact, atol=0.03 * float(np.abs(exact).max()))
