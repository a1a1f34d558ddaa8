"""Tiny Programs watched on tiny images, one with an outlier planted where no scale can be folded away."""

from __future__ import annotations

import numpy as np
import onnxruntime

from edgevit.backends.onnxruntime import options
from edgevit.backends.reference import taps
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.quantize.observe import Ranges, observe
from edgevit.schema.quant_plan import QuantPlan
from edgevit.tasks.sensitivity import Evaluate
from tests.tiny import tiny_images

OUTLIER = ("b00_ffn.fc2", 7)


def with_outlier(program: Program, factor: float = 500.0) -> Program:
    """One neuron of block 0's FFN is `factor` times larger and weighs as much less in the output."""
    weights = {k: program.weights[k].copy() for k in ("b00_ffn.fc1.weight", "b00_ffn.fc1.bias", "b00_ffn.fc2.weight")}
    weights["b00_ffn.fc1.weight"][:, OUTLIER[1]] *= factor
    weights["b00_ffn.fc1.bias"][OUTLIER[1]] *= factor
    weights["b00_ffn.fc2.weight"][OUTLIER[1]] /= factor
    return program.with_weights(weights)


def watched(program: Program, count: int = 12) -> Ranges:
    """What flows through the all-open float Program."""
    run = taps(assemble(program, gating="open", taps=True))
    return observe(program.spec, [run], (image[None] for image in tiny_images(program.spec, count)))


def logits(program: Program, plan: QuantPlan | None, images: np.ndarray) -> np.ndarray:
    """Logits `[n, classes]`, int8 products exact on any CPU."""
    model = assemble(program, plan, gating="open")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options(1, 8))
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


def evaluator(program: Program, count: int = 16) -> Evaluate:
    images = tiny_images(program.spec, count, seed=1)
    return lambda plan: logits(program, plan, images)
