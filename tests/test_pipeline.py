"""The main job on a tiny Program: a verified bundle comes out, or one clear error and nothing half-written."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgevit import pipeline
from edgevit.backends import backend
from edgevit.backends.onnxruntime import memory_bound as ort_bound
from edgevit.build.case import GOLDEN_PART, head_deviation
from edgevit.bundle.read import open_bundle, verify_bundle
from edgevit.compress.budgets import Budgets
from edgevit.errors import (
    AccuracyError,
    BoundError,
    BudgetError,
    CoverageError,
    OutputError,
    ParityError,
    ProgramError,
    SkipError,
    TargetError,
)
from edgevit.frontends.t2t import t2t_program
from edgevit.onnx_form import assemble as assembling
from edgevit.onnx_form.linear import quantize_weight
from edgevit.program.macs import total_macs
from edgevit.program.original import weights_digest
from edgevit.program.program import Program
from edgevit.program.tokens import read_plan, with_merges
from edgevit.schema.claims import ParityFigures, figures_of
from tests.building import RECIPE, build, image_set, lenient
from tests.tiny import tiny_images, tiny_program


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino", "x86-64-v3-tvm"])
def test_merged_tokens_are_built_and_every_claim_holds(tmp_path: Path, target: str, gated: bool) -> None:
    program = pipeline.merge_tokens(tiny_program(gated=gated, depth=4), "1:4,2:3")
    built = build(program, tmp_path / "bundle", target)
    # OpenVINO's plugin does not tell all that it holds; everything else is proven as for any Program.
    assert all(claim.held for claim in built.manifest.claims if (target, claim.name) != ("x86-64-openvino", "bound"))
    macs = built.manifest.macs
    assert macs.all_open == total_macs(program.spec) < 0.9 * macs.dense
    # Every runtime tells its pairs, of every run that no gate ends.
    parity = figures_of(built.manifest.claims, ParityFigures)
    assert parity is not None
    first = (parity.against_lowered or parity.against_float).paths[0]  # OpenVINO's target is bf16
    assert first.pairs >= 4 * first.images and first.other_pairs <= 0.3 * first.pairs
    assert built.manifest.original is not None and "tokens merged at 1:4,2:3" in built.manifest.original.steps[0]


@pytest.mark.parametrize("share", [0.85, 0.6])
def test_tokens_are_merged_first_and_what_is_missing_is_pruned(share: float) -> None:
    program, said = tiny_program(depth=4, hidden=64, heads=4), list[str]()
    images = tiny_images(program.spec, 6)
    found = pipeline.compress(program, images, Budgets(merged=share), say=said.append)
    assert found.spec.merges and total_macs(found.spec) <= share * total_macs(program.spec)
    assert any(line.startswith("chosen: tokens merged at") for line in said)
    original = found.spec.original
    assert original is not None and original.macs == total_macs(program.spec)
    assert "tokens merged at" in original.steps[-2] and "output linears" in original.steps[-1]
    pruned = any(b.units < b.units_total for b in found.spec.branches)
    assert pruned == (len(original.steps) == 3) == (share == 0.6)


def test_what_merges_tokens_is_not_compressed_again() -> None:
    program = tiny_program(depth=3, tokens="1:4")
    for budgets in (Budgets(merged=0.9), Budgets(static=0.9, expected=0.9)):
        with pytest.raises(BudgetError, match="merges tokens already"):
            pipeline.compress(program, tiny_images(program.spec, 2), budgets)


def test_a_target_that_cannot_merge_tokens_refuses_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.backends.tvm.MERGES", False)
    said: list[str] = []
    with pytest.raises(TargetError, match=r"merges tokens \(1:4\), which tvm targets such as x86-64-v3-tvm"):
        build(tiny_program(depth=3, tokens="1:4"), tmp_path / "bundle", "x86-64-v3-tvm", say=said.append)
    assert not said and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-avx2-onnxruntime", "x86-64-openvino"])
def test_every_target_builds_and_its_bundle_runs(tmp_path: Path, target: str) -> None:
    program = tiny_program(gated=True, skip=True, depth=3)
    built = build(program, tmp_path / "bundle", target)
    assert {c.name for c in built.manifest.claims} == {"coverage", "parity", "skip", "bound", "accuracy"}
    assert all(c.held for c in built.manifest.claims)
    assert built.archive.is_file()
    with open_bundle(tmp_path / "bundle") as bundle:
        loaded = backend(bundle.manifest.backend).load(
            bundle.folder,
            file=bundle.manifest.model,
            precision=bundle.manifest.target.inference_precision,
            weight_bits=bundle.manifest.target.weight_bits,
        )
        assert {g.path for g in verify_bundle(bundle, loaded)} == {"all_open", "all_skipped", "real"}
    text = (tmp_path / "bundle" / "manifest.json").read_text()
    assert str(tmp_path) not in text


def test_an_existing_bundle_stays_without_force_and_when_a_build_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tiny_program(gated=True)
    folder = tmp_path / "bundle"
    build(program, folder)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="--force"):
        build(program, folder)
    monkeypatch.setattr(pipeline, "write_bundle", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(program, folder, force=True)
    assert (folder / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle.zip"]


def test_accuracy_rows_compare_original_compressed_and_bundle(tmp_path: Path) -> None:
    judged = image_set(tiny_program(), 20, labels=True)
    program = pipeline.compare(tiny_program(gated=True), tiny_program(), judged)
    built = pipeline.build(
        program,
        lenient("x86-64-onnxruntime"),
        image_set(program),
        tmp_path / "bundle",
        recipe=RECIPE,
        evaluation=judged,
    )
    rows = {(r.model, r.metric, r.against): r.value for r in built.manifest.accuracy}
    assert list(rows) == [
        ("original", "top1", "float"),
        ("compressed", "top1", "float"),
        ("compressed", "agreement", "original"),
        ("bundle", "top1", "float"),
        ("bundle", "agreement", "original"),
        ("bundle", "agreement", "float"),
    ]
    assert {r.images for r in built.manifest.accuracy} == {20}
    said = built.manifest.claims[-1].summary
    assert "original" in said and "to compression" in said and "held out" not in said
    kept = built.manifest.original
    assert kept is not None and kept.weights_sha256 == weights_digest(tiny_program())
    (evaluation,) = kept.evaluations
    assert rows["original", "top1", "float"] == evaluation.original_top1
    assert rows["compressed", "top1", "float"] == evaluation.top1
    assert rows["compressed", "agreement", "original"] == evaluation.agreement


def test_a_dense_model_is_its_own_original(tmp_path: Path) -> None:
    program = tiny_program()
    images = image_set(program, 20, labels=True)
    built = pipeline.build(
        program, lenient("x86-64-onnxruntime"), images, tmp_path / "bundle", recipe=RECIPE, evaluation=images
    )
    rows = [(r.model, r.metric, r.against) for r in built.manifest.accuracy]
    assert rows == [("original", "top1", "float"), ("bundle", "top1", "float"), ("bundle", "agreement", "original")]
    assert built.manifest.original is None


def test_a_compressed_model_whose_original_is_not_known_says_so(tmp_path: Path) -> None:
    built = build(tiny_program(gated=True), tmp_path / "bundle")
    (claim,) = (c for c in built.manifest.claims if c.name == "accuracy")
    assert "against the original: not known on these images: this Program does not keep it; --original" in claim.summary
    assert "on the calibration images themselves" in claim.summary
    assert {(r.model, r.against) for r in built.manifest.accuracy} == {("bundle", "float")}


def test_losing_more_than_max_drop_fails_the_build(tmp_path: Path) -> None:
    judged = image_set(tiny_program(), 40)
    program = pipeline.compare(tiny_program(gated=True), tiny_program(seed=1), judged)
    options: dict[str, Any] = {"evaluation": judged, "max_drop": 10.0}
    with pytest.raises(
        AccuracyError, match=r"points of agreement against the original.*at most 10 allowed by --max-drop"
    ):
        build(program, tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())
    assert build(program, tmp_path / "bundle", **options | {"max_drop": 100.0}).folder.is_dir()


@pytest.mark.parametrize("judged", [True, False])
def test_max_drop_needs_the_original_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: bool
) -> None:
    monkeypatch.setattr(pipeline, "quantize", lambda *a: pytest.fail("began to quantize"))
    program = tiny_program(gated=True)
    with pytest.raises(ProgramError, match="--original" if judged else "--eval"):
        build(program, tmp_path / "bundle", evaluation=image_set(program) if judged else None, max_drop=1.0)


def broken(monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    """Let the build lower a model that `change` has damaged; the references stay what they are."""
    right = assembling.assemble

    def wrong(program: Program, plan: object = None, **options: object) -> onnx.ModelProto:
        return change(right, program, plan, options)  # type: ignore[operator,no-any-return]

    monkeypatch.setattr(pipeline, "assemble", wrong)


def test_a_flipped_gate_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(right, program, plan, options):  # type: ignore[no-untyped-def]
        model = right(program, plan, **options)
        for node in model.graph.node:
            if node.op_type == "Greater" and not options:
                node.input[0], node.input[1] = node.input[1], node.input[0]
                break
        return model

    broken(monkeypatch, flip)
    with pytest.raises(ParityError, match="gate 0"):
        build(tiny_program(gated=True), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_hoisted_branch_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hoist(right, program, plan, options):  # type: ignore[no-untyped-def]
        return right(program, plan, **{**options, "gating": "both"}) if not options else right(program, plan, **options)

    broken(monkeypatch, hoist)
    with pytest.raises(SkipError):
        build(tiny_program(gated=True, skip=True), tmp_path / "bundle")


@pytest.mark.parametrize("wrong", ["1:3,2:4", "1:4,3:3"])
def test_tokens_merged_elsewhere_fail_the_build(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = pipeline.merge_tokens(tiny_program(depth=4), "1:4,2:3")

    def elsewhere(right, program, plan, options):  # type: ignore[no-untyped-def]
        bare = replace(program.spec, merges=())
        return right(program.with_weights({}, with_merges(bare, read_plan(wrong, bare))), plan, **options)

    broken(monkeypatch, elsewhere)
    target = replace(lenient("x86-64-onnxruntime"), int8=False)
    with pytest.raises(ParityError):
        pipeline.build(program, target, image_set(program), tmp_path / "bundle", recipe=RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_float_branch_body_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def float_body(right, program, plan, options):  # type: ignore[no-untyped-def]
        if options or plan is None:
            return right(program, plan, **options)
        kept = tuple(p if p.name != "b01_ffn.fc1" else replace(p, int8=False) for p in plan.linears)
        return right(program, replace(plan, linears=kept))

    broken(monkeypatch, float_body)
    with pytest.raises(CoverageError, match="b01_ffn.fc1"):
        build(tiny_program(gated=True), tmp_path / "bundle")


def test_a_wrong_bound_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ort_bound.bound

    def half(model: onnx.ModelProto) -> object:
        detail = right(model)
        halves = {name: getattr(detail.bound, name) // 2 for name in ("activations_bytes", "arena_bytes")}
        return replace(detail, bound=replace(detail.bound, **halves))

    monkeypatch.setattr(ort_bound, "bound", half)
    with pytest.raises(BoundError):
        build(tiny_program(gated=True), tmp_path / "bundle")


@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino"])
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_one_and_two_classes_build_and_ship_a_tolerance(tmp_path: Path, classes: int, gated: bool, target: str) -> None:
    """One logit has no deviation from others of its image, and where all is skipped none between images either."""
    program = tiny_program(classes=classes, gated=gated)
    built = build(program, tmp_path / "bundle", target)
    assert all(c.held for c in built.manifest.claims)
    assert built.manifest.golden_tolerance >= 0.25 * GOLDEN_PART * head_deviation(program) * 0.999
    with open_bundle(tmp_path / "bundle") as bundle:
        loaded = backend(bundle.manifest.backend).load(bundle.folder, weight_bits=8)
        assert [g.held for g in verify_bundle(bundle, loaded)] == [True] * (3 if gated else 1)


def test_a_wrong_weight_of_a_two_class_model_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(right, program, plan, options):  # type: ignore[no-untyped-def]
        weight = program.weights["b01_ffn.fc1.weight"]
        return right(program.with_weights({"b01_ffn.fc1.weight": weight[::-1]}), plan, **options)

    broken(monkeypatch, other)
    with pytest.raises(ParityError, match="logits differ by up to"):
        build(tiny_program(classes=2), tmp_path / "bundle")


def test_what_the_head_deviates_by_is_that_of_features_in_all_directions() -> None:
    rng = np.random.default_rng(0)
    for options in ({}, {"classes": 1}, {"prefix": 2, "head_prefix": 2}, {"prefix": 0}):
        program = tiny_program(**options)
        spec, weights = program.spec, program.weights
        name = "head.pooled_norm" if spec.head.pooled_norm else "head.norm"
        x = rng.standard_normal((4000, spec.head.prefix if spec.head.pool == "prefix" else 1, spec.dim))
        x = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True) * weights[f"{name}.weight"]
        logits = x.reshape(len(x), -1) @ weights["head.weight"]
        assert head_deviation(program) == pytest.approx(np.sqrt(logits.var(axis=0).mean()), rel=0.1)


def test_a_float_target_refuses_what_no_file_can_hold_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.onnx_form.check.MAX_BYTES", 10_000)
    said: list[str] = []
    with pytest.raises(ProgramError, match="at most 10000 fit into one ONNX file"):
        build(tiny_program(), tmp_path / "bundle", say=said.append)
    assert not said and not list(tmp_path.iterdir())


def test_a_build_that_needs_more_memory_than_there_is_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, said = tiny_program(), list[str]()
    build(program, tmp_path / "bundle", say=said.append)
    assert not any(line.startswith("warning") for line in said)
    monkeypatch.setattr("os.sysconf", lambda name: 10_000)
    build(program, tmp_path / "bundle", say=said.append, force=True)
    (warned,) = (line for line in said if line.startswith("warning"))
    floats = sum(array.nbytes for array in program.weights.values())
    assert f"tiny has {floats} bytes of float weights, and its build takes about 0.5 GB of memory" in warned
    assert "this machine has 0.1 GB" in warned


def test_a_float_target_has_no_plan(tmp_path: Path) -> None:
    program = tiny_program(gated=True)
    target = replace(lenient("x86-64-onnxruntime"), int8=False)
    built = pipeline.build(program, target, image_set(program), tmp_path / "bundle", recipe=RECIPE)
    assert "coverage" not in {c.name for c in built.manifest.claims}
    assert built.manifest.accuracy[0].value == 1.0


def test_smoothing_keeps_the_function(tmp_path: Path) -> None:
    program = tiny_program(gated=True)
    target = replace(lenient("x86-64-onnxruntime"), smoothing=0.5)
    changed, plan = pipeline.quantize(program, target, image_set(program).images)
    assert plan is not None
    norms = [name for name in program.weights if name.endswith("norm.weight")]
    assert any(not np.array_equal(changed.weights[name], program.weights[name]) for name in norms)
    assert build(program, tmp_path / "bundle").manifest.claims


@pytest.mark.parametrize("name", ["x86-64-avx2-onnxruntime", "x86-64-openvino", "x86-64-v3-tvm"])
def test_int8_weights_lie_on_their_grid_before_they_are_lowered(name: str) -> None:
    program = tiny_program()
    changed, plan = pipeline.quantize(program, lenient(name), image_set(program, 16).images)
    assert plan is not None
    for entry in plan.linears[1:]:
        weight = changed.weights[f"{entry.name}.weight"].copy()
        weight[list(entry.outliers)] = 0
        values, scale = quantize_weight(weight, plan.weight_bits)
        np.testing.assert_allclose(values * scale, weight, rtol=1e-6)
        assert not np.array_equal(changed.weights[f"{entry.name}.weight"], program.weights[f"{entry.name}.weight"])


def test_nothing_to_compress_gives_the_same_program() -> None:
    program = tiny_program()
    assert pipeline.compress(program, image_set(program).images, Budgets()) is program


@pytest.mark.parametrize(
    "budgets", [Budgets(expected=0.05), Budgets(expected=0.01, static=0.01), Budgets(expected=1.2, static=1.3)]
)
def test_a_budget_that_nothing_can_meet_is_refused_before_anything_slow(
    budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tiny_program()
    monkeypatch.setattr(import_module("edgevit.compress.prune.observe"), "collect", None)
    monkeypatch.setattr(import_module("edgevit.compress.gate.train"), "train_gates", None)
    with pytest.raises(BudgetError, match="cannot be reached by tiny"):
        pipeline.compress(program, image_set(program).images, budgets)


def test_compressing_prunes_and_gates_and_keeps_the_original() -> None:
    program = tiny_program(depth=3, dim=32, hidden=64)
    small = pipeline.compress(program, image_set(program, 16).images, Budgets(static=0.8, expected=0.64))
    kept = small.spec.original
    assert kept is not None and (kept.weights_sha256, kept.macs) == (weights_digest(program), total_macs(program.spec))
    assert [step.split(" of ")[0] for step in kept.steps] == ["pruned by 20%", "gated to 80%"]
    assert sum(a.size for a in small.weights.values()) < sum(a.size for a in program.weights.values())
    assert small.spec.gated


@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino"])
def test_t2t_builds(tmp_path: Path, target: str) -> None:
    program = t2t_program("t2t_vit_7", None, image_size=(64, 64))
    built = build(program, tmp_path / "bundle", target)
    assert next(c for c in built.manifest.claims if c.name == "coverage").summary == "30 of 30 Gemm int8"
