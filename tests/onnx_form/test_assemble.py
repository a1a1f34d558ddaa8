"""The lowered graph computes what the torch module computes, on every path, whatever the model's variant."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgevit.backends.reference import reference, reference_with_margins, taps
from edgevit.onnx_form.assemble import Gating, assemble, detached, tap_shapes
from edgevit.onnx_form.graph import LARGE_BYTES
from edgevit.program.macs import rows_out
from edgevit.program.program import Program
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, linear_names
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"gated": True},
    "skip rows": {"gated": True, "skip": True},
    "mean pooling": {"gated": True, "prefix": 0},
    "mean gates before a prefix head": {"gated": True, "gate_pool": "mean"},
    "two head tokens": {"gated": True, "skip": True, "prefix": 2, "head_prefix": 2},
    "register tokens": {"prefix": 5, "gated": True},
    "qk-norm": {"qk_norm": True, "activation": "quick_gelu"},
    "relu": {"activation": "relu", "stem_norm": True},
    "tanh gelu": {"activation": "gelu_tanh"},
    "silu": {"activation": "silu"},
    "removed last MHSA": {"gated": True, "skip": True, "removed": ("b01_mhsa",)},
    "removed last FFN": {"gated": True, "removed": ("b01_ffn",)},
    "merged tokens": {"depth": 3, "tokens": "1:4,2:3"},
    "half of the tokens merged": {"depth": 3, "gated": True, "tokens": "1:8"},
    "merged tokens, mean pooling": {"depth": 3, "gated": True, "prefix": 0, "tokens": "1:4,2:3"},
    "merged tokens, odd number": {"depth": 3, "skip": True, "gated": True, "tokens": "1:5,2:4"},
    "merged tokens after what is gone": {"depth": 3, "removed": ("b00_mhsa",), "prefix": 2, "tokens": "1:4"},
    "all removed": {"removed": ("b00_mhsa", "b00_ffn", "b01_mhsa", "b01_ffn"), "skip": True},
}


def run(model: onnx.ModelProto, effort: float | None = None) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feed = {"image": IMAGE}
    if effort is not None:
        feed["effort"] = np.array(effort, dtype=np.float32)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def torch_logits(program: Program, effort: float | None) -> np.ndarray:
    model = Vit(program)
    with torch.no_grad():
        decide = None if effort is None else model.hard_gates(effort)
        return np.asarray(model(normalise(program.spec, IMAGE), decide))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gating", ["if", "open", "both"])
def test_same_function_as_torch(variant: str, gating: Gating) -> None:
    program = tiny_program(**VARIANTS[variant])
    model = assemble(program, gating=gating)
    onnx.checker.check_model(model, full_check=True)
    takes_effort = program.spec.gated and gating != "open"
    for effort in (0.0, 1e9, -1e9, 0.3) if takes_effort else (None,):
        expected = torch_logits(program, effort)
        np.testing.assert_allclose(run(model, effort)["logits"], expected, atol=1e-5)


def test_gates_say_which_branches_ran() -> None:
    program = tiny_program(gated=True, removed=("b00_ffn",))
    model = assemble(program)
    assert run(model, 1e9)["gates"].tolist() == [1, 0, 1, 1]
    assert run(model, -1e9)["gates"].tolist() == [0, 0, 0, 0]


def test_effort_has_a_default() -> None:
    program = tiny_program(gated=True)
    assert np.array_equal(run(assemble(program))["logits"], run(assemble(program), 0.0)["logits"])


def test_rows_that_the_head_does_not_read_are_not_computed() -> None:
    program = tiny_program()
    assert rows_out(program.spec) == (17, 17, 1, 1)
    outputs = run(assemble(program, gating="open", streams=True))
    assert outputs["stream:b01_mhsa"].shape == (1, 32)
    assert outputs["stream:b00_ffn"].shape == (17, 32)


def test_taps_are_the_inputs_of_the_linears() -> None:
    program = tiny_program(gated=True)
    outputs = run(assemble(program, gating="both", taps=True), 0.0)
    seen: dict[str, np.ndarray] = {}

    def tap(name: str, x: torch.Tensor) -> torch.Tensor:
        seen[name] = x[0].numpy()
        return x

    model = Vit(program)
    with torch.no_grad():
        model(normalise(program.spec, IMAGE), None, tap)
    for name, shape in tap_shapes(program.spec).items():
        assert outputs[f"tap:{name}"].shape == shape
    # The first branch sees the same stream whatever the gates say.
    np.testing.assert_allclose(outputs["tap:b00_mhsa.qkv"], seen["b00_mhsa.qkv"], atol=1e-5)


def plan_for(program: Program) -> QuantPlan:
    return QuantPlan(
        linears=tuple(LinearPlan(name=n, int8=True, scale=0.05, zero_point=128) for n in linear_names(program.spec))
    )


def test_large_initialisers_stay_in_the_main_graph_and_small_ones_in_the_branch() -> None:
    program = tiny_program(gated=True, dim=64, heads=2, hidden=128)
    model = assemble(program, plan_for(program))
    bodies = [a.g for n in model.graph.node if n.op_type == "If" for a in n.attribute]
    assert bodies
    sizes = {t.name: len(t.raw_data) for b in bodies for t in b.initializer}
    assert sizes and max(sizes.values()) < LARGE_BYTES
    assert any(name.endswith("x_scale") for name in sizes)
    assert "b00_ffn.fc1/w_q" in {t.name for t in model.graph.initializer}


def test_equal_inputs_give_equal_bytes() -> None:
    program = tiny_program(gated=True, skip=True)
    first, second = (assemble(program, plan_for(program)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_taps_of_a_quantized_graph_are_refused() -> None:
    program = tiny_program()
    with pytest.raises(ValueError, match="float graph"):
        assemble(program, plan_for(program), gating="open", taps=True)


def test_a_constant_gate_is_no_gate() -> None:
    gated = tiny_program(gated=True)
    fixed = replace(gated.spec, branches=tuple(replace(b, gate=None) for b in gated.spec.branches))
    model = assemble(gated.with_weights({}, fixed))
    assert "If" not in {n.op_type for n in model.graph.node}
    assert [i.name for i in model.graph.input] == ["image"]


@pytest.mark.parametrize("gating", ["if", "open"])
def test_a_detached_model_is_the_same_without_its_weights(gating: Gating) -> None:
    program = tiny_program(gated=True, skip=True, dim=64)
    model, beside = detached(program, gating=gating)
    assert model.ByteSize() < 30_000 and sum(a.nbytes for a in beside.values()) > 200_000
    # The Program's own memory, not a copy of it.
    assert np.shares_memory(beside["b00_ffn.fc1/w"], program.weights["b00_ffn.fc1.weight"])
    whole, apart = reference(assemble(program, gating=gating)), reference(model, beside)
    margins = [reference_with_margins(assemble(program, gating=gating)), reference_with_margins(model, beside)]
    for image in tiny_images(program.spec, 3):
        expected = whole.run(image[None], 0.2)
        for a, b in zip(expected, apart.run(image[None], 0.2), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(*(told(image[None], 0.2) for told in margins), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_detached_model_outlives_who_made_it() -> None:
    """ONNX Runtime reads the arrays where they are: they must not go before the session does."""
    program = tiny_program(dim=64)
    image = tiny_images(program.spec, 1)
    expected = taps(assemble(program, gating="open", taps=True))(image)
    run = taps(*detached(program, gating="open", taps=True))
    del program
    gc.collect()
    overwritten = [np.full((64, 192), 9, np.float32) for _ in range(200)]
    assert overwritten and all((value == expected[name]).all() for name, value in run(image).items())
