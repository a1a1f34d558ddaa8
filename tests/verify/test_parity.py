from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgevit.backends import Runner, onnx_backend, onnx_backends
from edgevit.backends.reference import reference_with_margins
from edgevit.build.case import LEAST_PART, head_deviation
from edgevit.errors import ParityError
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.claims import Tolerance
from edgevit.util.strict_json import to_data
from edgevit.verify.parity import (
    FLOAT,
    INT8,
    QUANTIZED,
    centred_cosine,
    check_parity,
    deviation,
    drawn_paths,
    paths,
)
from tests.lowered import tiny_plan
from tests.tiny import tiny_images, tiny_program

PROGRAM = tiny_program(gated=True, skip=True, depth=3)
IMAGES = tiny_images(PROGRAM.spec, 6)
PLAN = tiny_plan(PROGRAM)
REFERENCE = reference_with_margins(assemble(PROGRAM))


def runner(model: onnx.ModelProto, folder: Path, name: str = "onnxruntime") -> Runner:
    onnx_backend(name).compile(model, folder)
    return onnx_backend(name).load(folder)


@pytest.mark.parametrize("name", onnx_backends())
def test_float_is_float_on_every_path(name: str, tmp_path: Path) -> None:
    result = check_parity(REFERENCE, runner(assemble(PROGRAM), tmp_path, name), IMAGES, FLOAT)
    by_name = {p.path: p for p in result.paths}
    assert list(by_name) == ["real", "all_open", "all_skipped", *(f"drawn_{i}" for i in range(1, 10))]
    assert (by_name["all_open"].open, by_name["all_skipped"].open) == (6, 0)
    drawn = [p.open for p in result.paths[3:]]
    assert drawn[0] < 2 and drawn[-1] > 4 and len(set(drawn)) > 4
    assert all(p.compared == 6 and p.flips == 0 and p.error < 1e-4 for p in result.paths)
    assert to_data(result)["paths"][1]["cosine"] > 0.9999
    assert result.summary.startswith("12 paths, max error ")


@pytest.mark.parametrize("name", onnx_backends())
def test_int8_computes_the_quantized_graph(name: str, tmp_path: Path) -> None:
    # Against the same rounded values in float arithmetic, int8 kernels are nearly exact.
    model = assemble(PROGRAM, PLAN)
    quantized = reference_with_margins(model, optimised=False)
    result = check_parity(quantized, runner(model, tmp_path, name), IMAGES, QUANTIZED)
    assert float(np.median([p.error for p in result.paths])) < 0.02


@pytest.mark.parametrize(("gates", "drawn"), [(0, 0), (1, 0), (2, 2), (5, 8), (6, 9), (24, 9)])
def test_few_gates_have_few_paths_in_between(gates: int, drawn: int) -> None:
    assert drawn_paths(gates) == drawn


def test_a_single_gate_is_compared_where_it_decides_and_not_at_its_limit() -> None:
    branches = PROGRAM.spec.branches
    kept = tuple(b if i == 2 else replace(b, gate=None) for i, b in enumerate(branches))
    single = PROGRAM.with_weights({}, replace(PROGRAM.spec, branches=kept))
    assert list(paths(reference_with_margins(assemble(single)), IMAGES)) == ["real", "all_open", "all_skipped"]


def test_a_clipping_scale_is_caught_against_the_quantized_graph(tmp_path: Path) -> None:
    model = assemble(PROGRAM, PLAN)
    quantized = reference_with_margins(model, optimised=False)
    entry = replace(PLAN.linears[4], scale=PLAN.linears[4].scale / 4)
    wrong = replace(PLAN, linears=(*PLAN.linears[:4], entry, *PLAN.linears[5:]))
    with pytest.raises(ParityError, match="(logits differ by up to|gate)"):
        check_parity(quantized, runner(assemble(PROGRAM, wrong), tmp_path), IMAGES, QUANTIZED)


@pytest.mark.parametrize("name", onnx_backends())
def test_int8_stays_within_its_tolerance_of_float(name: str, tmp_path: Path) -> None:
    result = check_parity(REFERENCE, runner(assemble(PROGRAM, PLAN), tmp_path, name), IMAGES, INT8)
    assert all(p.error > 1e-3 for p in result.paths if p.path != "all_skipped")
    with pytest.raises(ParityError, match=r"path 'real' .* image \d: (gate|logits)"):
        check_parity(REFERENCE, runner(assemble(PROGRAM, PLAN), tmp_path, name), IMAGES, FLOAT)


def gate_node(model: onnx.ModelProto, kind: str) -> Any:
    return [node for node in model.graph.node if node.op_type == kind][2]


def flip(model: onnx.ModelProto) -> None:
    gate_node(model, "Greater").op_type = "Less"


def shift(model: onnx.ModelProto) -> None:
    name = gate_node(model, "Greater").input[1]
    limit = next(t for t in model.graph.initializer if t.name == name)
    limit.raw_data = (np.frombuffer(limit.raw_data, np.float32) + 0.6).tobytes()


def swap_branches(model: onnx.ModelProto) -> None:
    then, other = gate_node(model, "If").attribute
    then.name, other.name = other.name, then.name


def perturb(model: onnx.ModelProto) -> None:
    bias = next(t for t in model.graph.initializer if t.name == "stem.pos")
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) * 1.05).tobytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"path 'real' .* gate 2 is (open|closed), the reference has it (open|closed) with its logit"),
        (shift, r"path 'drawn_\d' .* gate 2 is closed, the reference has it open with its logit \+"),
        (swap_branches, "logits differ by up to"),
        (perturb, "(logits differ by up to|gate)"),
    ],
)
def test_a_broken_model_is_caught(damage: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path) -> None:
    model = assemble(PROGRAM)
    damage(model)
    with pytest.raises(ParityError, match=message):
        check_parity(REFERENCE, runner(model, tmp_path), IMAGES, FLOAT)


def test_a_flipped_gate_is_caught_in_int8_too(tmp_path: Path) -> None:
    model = assemble(PROGRAM, PLAN)
    flip(model)
    with pytest.raises(ParityError, match=r"gate 2 .* only gates within 0\.3"):
        check_parity(REFERENCE, runner(model, tmp_path), IMAGES, INT8)


class Fake:
    def __init__(self, logits: np.ndarray, gates: list[int]) -> None:
        self.logits, self.gates = logits, np.array(gates, np.uint8)

    def run(self, image: np.ndarray, effort: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return self.logits, self.gates


LOGITS = np.array([[1.0, -2.0, 0.5]], np.float32)


def fake_reference(image: np.ndarray, effort: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return LOGITS, np.array([1, 0, 1], np.uint8), np.array([0.3, -0.01, 2.0], np.float32)


TOLERANCE = Tolerance(max_error=0.1, min_cosine=0.9, gate_margin=0.05, max_flips=1.0)


def test_a_borderline_gate_may_differ_and_ends_the_comparison() -> None:
    # Gate 2 differs only because gate 1 did: it is not judged, nor are the logits.
    result = check_parity(fake_reference, Fake(LOGITS + 9, [1, 1, 0]), IMAGES[:1], TOLERANCE, efforts={"real": 0.0})
    assert (result.paths[0].flips, result.paths[0].compared) == (1, 0)


@pytest.mark.parametrize(
    ("length", "gate", "told"), [(7.0, 0, ""), (5.0, 0, "gate 0 .* 0.25 of"), (0.1, 1, "gate 1 .* 0.005 of")]
)
def test_a_gate_is_near_its_limit_in_lengths_of_its_weights(length: float, gate: int, told: str) -> None:
    """The same gate with larger weights has logits as much larger, and so is what rounding makes of them."""
    gates = [1, 0, 1]
    gates[gate] = 1 - gates[gate]
    options: dict[str, Any] = {"efforts": {"real": 0.0}, "lengths": np.full(3, length)}
    if told:
        with pytest.raises(ParityError, match=told):
            check_parity(fake_reference, Fake(LOGITS, gates), IMAGES[:1], TOLERANCE, **options)
    else:
        assert check_parity(fake_reference, Fake(LOGITS, gates), IMAGES[:1], TOLERANCE, **options).paths[0].flips == 1


def test_too_many_borderline_gates_are_refused() -> None:
    strict = replace(TOLERANCE, max_flips=0.5)
    with pytest.raises(ParityError, match=r"in 2 of 2 runs a gate differs .* allowed: 50% of the runs"):
        check_parity(fake_reference, Fake(LOGITS, [1, 1, 1]), IMAGES[:2], strict, efforts={"real": 0.0})


@pytest.mark.parametrize(
    ("logits", "gates", "message"),
    [
        (LOGITS, [0, 0, 1], "gate 0 is closed, the reference has it open"),
        (LOGITS, [1, 0], r"gates have shape \[2\], expected \[3\]"),
        (LOGITS[:, :2], [1, 0, 1], r"logits \[1, 2\] are not finite values of shape \[1, 3\]"),
        (LOGITS * np.float32(np.nan), [1, 0, 1], "not finite"),
        (-LOGITS, [1, 0, 1], "logits differ by up to 4"),
        (LOGITS + np.float32(0.3), [1, 0, 1], r"0\.\d+ of their deviation \(allowed: 0\.1\)"),
    ],
)
def test_differences_are_named(logits: np.ndarray, gates: list[int], message: str) -> None:
    with pytest.raises(ParityError, match=message):
        check_parity(fake_reference, Fake(logits, gates), IMAGES[:1], TOLERANCE, efforts={"real": 0.0})


def test_a_model_without_gates_has_one_path(tmp_path: Path) -> None:
    program = tiny_program()
    reference = reference_with_margins(assemble(program))
    assert paths(reference, IMAGES) == {"real": 0.0}
    assert check_parity(reference, runner(assemble(program), tmp_path), IMAGES, FLOAT).paths[0].open == 4


def test_no_images_prove_nothing() -> None:
    with pytest.raises(ParityError, match="0 images"):
        check_parity(fake_reference, Fake(LOGITS, [1]), IMAGES[:0], FLOAT)


def test_a_wrong_limit_of_a_single_gate_is_caught(tmp_path: Path) -> None:
    """No path is drawn for it; the calibrated one shows it."""
    branches = PROGRAM.spec.branches
    gate = branches[2].gate
    assert gate is not None

    def single(threshold: float) -> Program:
        limit = replace(gate, threshold=threshold)
        kept = tuple(replace(b, gate=limit if i == 2 else None) for i, b in enumerate(branches))
        return PROGRAM.with_weights({}, replace(PROGRAM.spec, branches=kept))

    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right = reference_with_margins(assemble(single(gate.threshold)))
    margins = np.array([right(image[None], 0.0)[2][2] for image in IMAGES])
    check_parity(right, runner(assemble(single(gate.threshold)), tmp_path / "right"), IMAGES, FLOAT)
    wrong = runner(assemble(single(gate.threshold + float(np.abs(margins).max()) + 0.1)), tmp_path / "wrong")
    with pytest.raises(ParityError, match="gate 2 is closed, the reference has it open"):
        check_parity(right, wrong, IMAGES, FLOAT, efforts={"real": 0.0})


def small_head(kind: str) -> Program:
    """One score, two classes that are each other's negative, or two that lie close together on every image."""
    program = tiny_program(depth=3, classes=1 if kind == "one" else 2)
    weight = program.weights["head.weight"].copy()
    if kind == "opposite":
        weight[:, 1] = -weight[:, 0]
    elif kind == "close":
        weight[:, 1] = weight[:, 0] * 1.001
    bias = np.zeros(weight.shape[1], np.float32)
    return program.with_weights({"head.weight": weight, "head.bias": bias})


SMALL = ("one", "opposite", "close")


def least_deviation(program: Program) -> float:
    return LEAST_PART * head_deviation(program)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("count", [1, 6])
def test_few_classes_are_measured_in_what_they_deviate_by(kind: str, count: int, tmp_path: Path) -> None:
    """One class deviates from no other of its image, two close ones hardly: good builds were off by 1e10."""
    program = small_head(kind)
    images, least = tiny_images(program.spec, count), least_deviation(program)
    int8 = assemble(program, tiny_plan(program))
    built = runner(int8, tmp_path)
    floats = reference_with_margins(assemble(program))
    result = check_parity(floats, built, images, INT8, least_deviation=least)
    assert 0 < result.paths[0].error < 1 and result.paths[0].cosine > 0.95
    written = reference_with_margins(int8, optimised=False)
    check_parity(written, built, images, QUANTIZED, least_deviation=least)
    (tmp_path / "float").mkdir()
    check_parity(floats, runner(assemble(program), tmp_path / "float"), images, FLOAT, least_deviation=least)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("name", ["b01_ffn.fc1", "b00_mhsa.proj", "head"])
def test_a_wrong_weight_is_caught_with_few_classes_too(kind: str, name: str, tmp_path: Path) -> None:
    program = small_head(kind)
    weight = program.weights[f"{name}.weight"]
    other = np.random.default_rng(9).permutation(weight.ravel()).reshape(weight.shape)
    wrong = program.with_weights({f"{name}.weight": other})
    floats = reference_with_margins(assemble(program))
    built = runner(assemble(wrong, tiny_plan(wrong)), tmp_path)
    with pytest.raises(ParityError, match=r"(logits differ by up to|cosine is)"):
        check_parity(floats, built, IMAGES, INT8, least_deviation=least_deviation(program))


@pytest.mark.parametrize("kind", SMALL)
def test_the_same_answer_for_every_image_is_caught(kind: str) -> None:
    """It is never further away than the images are from each other, but does not follow them."""
    program = small_head(kind)
    floats = reference_with_margins(assemble(program))
    mean = np.mean([floats(image[None], 0.0)[0] for image in IMAGES], axis=0)
    with pytest.raises(ParityError, match="does not follow what images change"):
        check_parity(floats, Fake(mean, [1] * 6), IMAGES, INT8, least_deviation=least_deviation(program))


def test_many_classes_are_measured_as_before_and_images_of_a_kind_take_nothing_away() -> None:
    many = np.random.default_rng(0).standard_normal((8, 1000)) * 2 + np.random.default_rng(1).standard_normal(1000) * 3
    assert deviation(many, 0.5) == many.std(axis=1).min()
    one = np.array([[3.0], [5.0], [4.0]])
    assert deviation(one) == 1.0
    assert deviation(one[:1], 0.25) == deviation(np.repeat(one[:1], 8, axis=0), 0.25) == 0.25
    assert deviation(one[:1]) > 0


def test_the_centred_cosine_sees_direction_and_leaves_room_for_rounding() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 2)) + 10
    mean = a.mean(axis=0)
    assert centred_cosine(a, a, mean) == pytest.approx(1)
    assert centred_cosine(a, np.tile(mean, (8, 1)), mean) < 0.02
    assert centred_cosine(a, 2 * mean - a, mean) < -0.9
    near = mean + 1e-3 * rng.standard_normal((8, 2))
    assert centred_cosine(near, near + 1e-3 * rng.standard_normal((8, 2)), mean, 0.1) > 0.999


def test_a_constant_gate_at_its_limit_may_differ_by_rounding() -> None:
    """Weights of 0 have no length, and its logit still has float32's last bit."""

    def constant(image: np.ndarray, effort: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return LOGITS, np.array([1], np.uint8), np.array([1e-7], np.float32)

    options: dict[str, Any] = {"efforts": {"real": 0.0}, "lengths": np.zeros(1)}
    assert check_parity(constant, Fake(LOGITS, [0]), IMAGES[:1], TOLERANCE, **options).paths[0].flips == 1
