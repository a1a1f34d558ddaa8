"""Normalisation folded into the stem, and the zero point of an int8 image."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch

from edgevit.onnx_form.assemble import assemble
from edgevit.onnx_form.patch_stem import fold_normalisation
from edgevit.schema.quant_plan import LinearPlan, QuantPlan
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_program


def test_folding_normalisation_changes_nothing() -> None:
    program = tiny_program()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 192)).astype(np.float64)
    weight, offset = fold_normalisation(program.spec, program.weights["stem.weight"])
    mean, std = (np.tile(v, 64) for v in (program.spec.image.mean, program.spec.image.std))
    expected = ((pixels / 255 - mean) / std) @ program.weights["stem.weight"]
    np.testing.assert_allclose(pixels @ weight + offset, expected, atol=1e-4)


def test_an_int8_stem_takes_the_image_as_it_is_whatever_its_zero_point() -> None:
    program = tiny_program()
    image = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = Vit(program)(normalise(program.spec, image)).numpy()
    for zero_point in (0, 116):
        plan = QuantPlan(linears=(LinearPlan(name="stem", int8=True, zero_point=zero_point),))
        model = assemble(program, plan)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        got = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"image": image})[0]
        assert "stem/float" not in {n.name for n in model.graph.node}
        assert np.abs(got - expected).max() < 0.15 * expected.std()
