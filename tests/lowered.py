"""Lowered models for tests: a tiny Program with a quantization plan from its own activations."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, linear_names
from tests.tiny import tiny_images


def tiny_plan(program: Program, *, floats: tuple[str, ...] = ()) -> QuantPlan:
    """Min-max ranges over a few images, every Linear int8 but `floats`; 7 bits: exact with and without VNNI."""
    model = assemble(program, gating="both" if program.spec.gated else "open", taps=True)
    configured = onnxruntime.SessionOptions()
    configured.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), configured)
    taps = [o.name for o in session.get_outputs() if o.name.startswith("tap:")]
    low, high = dict.fromkeys(taps, 0.0), dict.fromkeys(taps, 0.0)
    for image in tiny_images(program.spec, 8):
        for name, value in zip(taps, session.run(taps, {"image": image[None]}), strict=True):
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
    plans = []
    for name in linear_names(program.spec):
        tap = f"tap:{name}"
        scale = (high[tap] - low[tap]) / 255 if tap in low else 1.0
        zero = int(np.rint(-low[tap] / scale)) if tap in low else 0
        plans.append(LinearPlan(name=name, int8=name not in floats, scale=scale, zero_point=zero))
    return QuantPlan(linears=tuple(plans), weight_bits=7)


def without_skipping(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a lowered model whose closed branches run as if they were open."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    for node in broken.graph.node:
        if node.op_type == "If":
            bodies = {each.name: each.g for each in node.attribute}
            bodies["else_branch"].CopyFrom(bodies["then_branch"])
    return broken
