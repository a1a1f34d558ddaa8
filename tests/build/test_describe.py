"""The tolerance that golden outputs are shipped with: it allows for other kernels, and not for another function."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgevit.backends.reference import reference_with_margins
from edgevit.build.case import Case
from edgevit.build.describe import golden_tolerance
from edgevit.build.verify_build import Evidence
from edgevit.bundle.read import GoldenResult, compare_golden, load_golden, open_bundle
from edgevit.onnx_form.assemble import assemble
from edgevit.program.program import Program
from edgevit.schema.claims import Claim, ParityFigures, ParityResult, PathParity
from edgevit.schema.manifest import Bundle
from edgevit.verify.parity import INT8, QUANTIZED
from tests.build.test_verify_build import case
from tests.building import build
from tests.lowered import tiny_plan
from tests.tiny import tiny_program
from tests.verify.test_memory import BOUND

BIAS = "b01_ffn.fc2.bias"
PLAIN = tiny_program()
PROGRAM = PLAIN.with_weights({BIAS: 20 * PLAIN.weights[BIAS]})  # one that counts beside int8's rounding


def evidence(largest: float | None, deviation: float = 1.0) -> Evidence:
    """Evidence of parity with this largest difference from the lowered graph; None: it was not compared."""
    path = PathParity(
        path="real",
        effort=0.0,
        images=1,
        compared=1,
        open=4.0,
        flips=0,
        max_abs_error=largest or 0.0,
        error=(largest or 0.0) / deviation,
        cosine=1.0,
        deviation=deviation,
    )
    floats, lowered = ParityResult(paths=(path,), tolerance=INT8), ParityResult(paths=(path,), tolerance=QUANTIZED)
    figures = ParityFigures(against_float=floats, against_lowered=None if largest is None else lowered)
    parity = Claim(name="parity", held=True, summary="held", figures=figures)
    return Evidence(
        claims=(parity,),
        bound=BOUND.bound,
        branch_bytes={},
        open_rates=np.ones(4),
        tokens=None,
        accuracy=(),
        deviation=deviation,
    )


@pytest.mark.parametrize(
    ("largest", "allowed"),
    [(None, 0.23), (0.01, 0.23), (0.4, 0.6), (1.2, 0.92)],
    ids=["float", "least", "spread", "most"],
)
def test_the_tolerance_follows_how_far_kernels_were_apart(largest: float | None, allowed: float) -> None:
    """With a quarter of the deviation, 0.23, a correct DeiT-Ti whose logits were 0.286 off elsewhere was refused."""
    assert golden_tolerance(case(), evidence(largest, 0.92)) == pytest.approx(allowed)


class Unrunnable(Case):
    """A build that nothing here can run."""

    runnable = False


def test_machine_code_that_was_verified_has_no_other_kernels() -> None:
    native = case("x86-64-v3-tvm")
    assert golden_tolerance(native, evidence(0.4)) == pytest.approx(0.25)
    unrunnable = Unrunnable(**{name: getattr(native, name) for name in native.__dataclass_fields__})
    assert golden_tolerance(unrunnable, evidence(0.4)) == pytest.approx(0.6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A dense int8 build for another CPU than this one."""
    folder = tmp_path_factory.mktemp("built") / "bundle"
    build(PROGRAM, folder, "rpi5-onnxruntime")
    with open_bundle(folder) as opened:
        yield opened


def golden(bundle: Bundle, program: Program, *, optimised: bool) -> GoldenResult:
    """Run the golden input of `bundle` on a Program, quantized as the bundle's is."""
    run = reference_with_margins(assemble(program, tiny_plan(program)), optimised=optimised)
    case = bundle.manifest.golden[0]
    logits, gates, *_ = run(load_golden(bundle, case)[0], case.effort)
    return compare_golden(bundle, case, logits, gates)


def test_kernels_that_round_otherwise_give_the_golden_output(bundle: Bundle) -> None:
    """The lowered graph as written has no int8 kernels, which saturate on a CPU without VNNI."""
    result = golden(bundle, PROGRAM, optimised=False)
    assert result.held and result.logit_error > 0


@pytest.mark.parametrize("wrong", ["branch", "classes", "bias"])
def test_another_function_does_not_give_the_golden_output(bundle: Bundle, wrong: str) -> None:
    weights = PROGRAM.weights
    changed = {
        "branch": {"b01_ffn.fc1.weight": weights["b01_ffn.fc1.weight"][::-1]},
        "classes": {"head.weight": weights["head.weight"][:, ::-1], "head.bias": weights["head.bias"][::-1]},
        "bias": {BIAS: np.zeros_like(weights[BIAS])},
    }[wrong]
    assert golden(bundle, PROGRAM, optimised=True).held
    assert not golden(bundle, PROGRAM.with_weights(changed), optimised=True).held
