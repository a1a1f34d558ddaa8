"""OpenVINO on a CPU without VNNI: 8-bit weights are computed exactly, 7-bit ones and VNNI run as int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.backends import onnx_backend, openvino
from edgevit.backends.reference import reference
from edgevit.lower.assemble import assemble
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program


@pytest.mark.parametrize(
    ("weight_bits", "lacks", "exact"), [(8, True, True), (8, False, False), (7, True, False), (7, False, False)]
)
def test_only_8_bit_weights_without_vnni_are_computed_as_written(
    monkeypatch: pytest.MonkeyPatch, weight_bits: int, lacks: bool, exact: bool
) -> None:
    monkeypatch.setattr(openvino, "_lacks_vnni", lambda: lacks)
    assert openvino._exact(weight_bits) == ({"LP_TRANSFORMS_MODE": "NO"} if exact else {})


def test_computed_as_written_it_is_the_quantized_model_in_exact_arithmetic(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(openvino, "_lacks_vnni", lambda: True)
    program = tiny_program(dim=64, hidden=256, seed=3)
    model = assemble(program, tiny_plan(program))
    openvino.compile(model, tmp_path)
    image = tiny_images(program.spec, 1)
    exact, _ = reference(model, exact=True).run(image)
    got, _ = onnx_backend("openvino").load(tmp_path, weight_bits=8).run(image)
    # One rounding step of a quantized input may tip over between two float kernels.
    np.testing.assert_allclose(got, exact, atol=0.02 * float(np.abs(exact).max()))
