from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgevit.compress.prune.divergence import score
from edgevit.compress.prune.observe import collect
from edgevit.compress.prune.plan import BranchPlan, PrunePlan, plan_prune
from edgevit.compress.prune.refit import refit
from edgevit.compress.prune.shrink import shrink
from edgevit.errors import BudgetError, ImagesError
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program


def _plan(program: Program, **kept: tuple[int, ...]) -> PrunePlan:
    branches = tuple(BranchPlan(name=b.name, kept=kept.get(b.name, b.kept), loss=0.0) for b in program.spec.branches)
    return PrunePlan(branches=branches, macs=0, budget_macs=0)


@torch.no_grad()
def _logits(program: Program, images: np.ndarray) -> torch.Tensor:
    return Vit(program).forward(batches(program.spec, images, len(images))[0])


@torch.no_grad()
def _branch(program: Program, index: int, x: torch.Tensor) -> torch.Tensor:
    model = Vit(program)
    return model.branch(model.spec.branches[index], x)


def _correlated(program: Program) -> Program:
    """A Program whose neurons 1, 3, 5, ... of b00_ffn repeat the neurons before them."""
    w, b = program.weights["b00_ffn.fc1.weight"].copy(), program.weights["b00_ffn.fc1.bias"].copy()
    w[:, 1::2], b[1::2] = w[:, ::2], b[::2]
    return program.with_weights({"b00_ffn.fc1.weight": w, "b00_ffn.fc1.bias": b})


def test_a_plan_that_keeps_everything_keeps_every_array() -> None:
    program = tiny_program()
    images = tiny_images(program.spec)
    statistics = collect(program, images)
    for result in (shrink(program, _plan(program), statistics), refit(program, program, images)):
        assert result.spec == program.spec
        assert all(np.array_equal(result.weights[n], a) for n, a in program.weights.items())


def test_tensors_really_shrink() -> None:
    program = tiny_program(depth=2)
    plan = _plan(program, b00_mhsa=(1,), b00_ffn=tuple(range(0, 64, 2)), b01_mhsa=())
    small = shrink(program, plan, collect(program, tiny_images(program.spec)))
    shapes = {n: a.shape for n, a in small.weights.items()}
    assert shapes["b00_mhsa.qkv.weight"] == (32, 48) and shapes["b00_mhsa.proj.weight"] == (16, 32)
    assert shapes["b00_ffn.fc1.weight"] == (32, 32) and shapes["b00_ffn.fc2.weight"] == (32, 32)
    assert shapes["b01_mhsa.skip"] == (2, 32) and "b01_mhsa.qkv.weight" not in shapes
    assert total_macs(small.spec) < total_macs(program.spec)


def test_plain_removal_equals_zeroed_units() -> None:
    """One head and some neurons cut out give what the full model gives with their outputs zeroed."""
    program, images = tiny_program(depth=2), None
    images = tiny_images(program.spec)
    kept = tuple(range(0, 64, 3))
    plan = _plan(program, b00_mhsa=(1,), b01_ffn=kept)
    small = shrink(program, plan, None)
    proj, fc2 = program.weights["b00_mhsa.proj.weight"].copy(), program.weights["b01_ffn.fc2.weight"].copy()
    proj[:16] = 0
    fc2[np.setdiff1d(np.arange(64), kept)] = 0
    masked = program.with_weights({"b00_mhsa.proj.weight": proj, "b01_ffn.fc2.weight": fc2})
    torch.testing.assert_close(_logits(small, images), _logits(masked, images), atol=1e-5, rtol=1e-4)


def test_removing_repeated_neurons_costs_nothing_with_compensation_only() -> None:
    program = _correlated(tiny_program())
    images = tiny_images(program.spec, 8)
    statistics = collect(program, images)
    plan = _plan(program, b00_ffn=tuple(range(0, 64, 2)))
    wanted = _logits(program, images)
    errors = [
        float((_logits(shrink(program, plan, statistics if c else None), images) - wanted).abs().max())
        for c in (True, False)
    ]
    assert errors[0] < 0.02 and errors[1] > 0.2


def test_a_removed_branch_adds_its_mean_output() -> None:
    program = tiny_program()
    images = tiny_images(program.spec, 6)
    gone = shrink(program, _plan(program, b00_mhsa=()), collect(program, images))
    model = Vit(program)
    with torch.no_grad():
        y = model.branch(program.spec.branches[0], model.stem(batches(program.spec, images)[0]))
    np.testing.assert_allclose(gone.weights["b00_mhsa.skip"][0], y[:, 0].mean(0), atol=1e-5)
    np.testing.assert_allclose(gone.weights["b00_mhsa.skip"][1], y[:, 1:].mean((0, 1)), atol=1e-5)


def test_a_removed_branch_loses_its_gate() -> None:
    program = tiny_program(gated=True)
    gone = shrink(program, _plan(program, b00_mhsa=()), collect(program, tiny_images(program.spec)))
    assert gone.spec.branches[0].gate is None and "b00_mhsa.gate.weight" not in gone.weights


def test_pruning_twice_keeps_the_names_of_units() -> None:
    program = tiny_program()
    images = tiny_images(program.spec)
    once = shrink(program, _plan(program, b00_ffn=tuple(range(32, 64))), collect(program, images))
    twice = shrink(once, _plan(once, b00_ffn=tuple(range(40, 56))), None)
    assert twice.spec.branches[1].kept == tuple(range(40, 56))
    np.testing.assert_array_equal(twice.weights["b00_ffn.fc1.weight"], program.weights["b00_ffn.fc1.weight"][:, 40:56])


def test_score_is_the_divergence_of_the_reduced_model() -> None:
    """The score of a level equals the KL of the Program that shrink makes for it."""
    program = tiny_program(depth=2)
    images = tiny_images(program.spec, 5)
    statistics = collect(program, images)
    scores = score(program, images, statistics)
    reference = _logits(program, images).log_softmax(-1)
    for s in scores:
        assert s.loss[0] == 0 and s.units[-1] == 0
        for units, loss in list(zip(s.units, s.loss, strict=True))[1:]:
            kept = tuple(sorted(s.order[len(s.order) - units :]))
            small = shrink(program, _plan(program, **{s.name: kept}), statistics)
            logits = _logits(small, images).log_softmax(-1)
            kl = float((reference.exp() * (reference - logits)).sum(-1).mean())
            assert loss == pytest.approx(kl, rel=1e-3, abs=1e-5)


def test_score_finds_the_branch_that_does_nothing() -> None:
    program = tiny_program(depth=2)
    silent = program.with_weights({"b01_ffn.fc2.weight": np.zeros((64, 32), np.float32)})
    images = tiny_images(program.spec, 4)
    statistics = collect(silent, images)
    scores = {s.name: s for s in score(silent, images, statistics)}
    assert max(scores["b01_ffn"].loss) < 1e-6 < min(s.loss[-1] for n, s in scores.items() if n != "b01_ffn")
    # The last FFN computes one row only; a budget that its MACs cover removes it and nothing else.
    plan = plan_prune(tuple(scores.values()), silent.spec, 1 - 1e-3)
    assert plan.loss == pytest.approx(0, abs=1e-6) and plan.branches[3].kept != silent.spec.branches[3].kept


def test_refit_brings_the_stream_back() -> None:
    """After two reductions the repaired model is closer to the dense stream, on images it has not seen."""
    program = tiny_program(depth=2, hidden=128)
    images = tiny_images(program.spec, 80)
    fitted, fresh = images[:64], images[64:]
    plan = _plan(program, b00_ffn=tuple(range(64)), b01_mhsa=(0,))
    small = shrink(program, plan, collect(program, fitted))
    repaired = refit(small, program, fitted)
    assert repaired.spec == small.spec
    with torch.no_grad():
        streams = [m.blocks(m.stem(batches(m.spec, fresh)[0])) for m in (Vit(program), Vit(small), Vit(repaired))]
    before, after = ((s - streams[0]).square().mean() for s in streams[1:])
    assert after < 0.95 * before


def test_refit_leaves_what_comes_before_the_first_reduction() -> None:
    program = tiny_program(depth=2)
    images = tiny_images(program.spec, 8)
    small = shrink(program, _plan(program, b01_mhsa=(0,)), collect(program, images))
    repaired = refit(small, program, images)
    assert all(np.array_equal(repaired.weights[n], a) for n, a in small.weights.items() if n.startswith("b00"))
    assert not np.array_equal(repaired.weights["b01_ffn.fc2.weight"], small.weights["b01_ffn.fc2.weight"])


def test_images_of_another_kind_are_refused() -> None:
    program = tiny_program()
    good = tiny_images(program.spec)
    for bad in (good[:0], good[:, :16], good.astype(np.float32), good[0]):
        with pytest.raises(ImagesError, match=r"needs at least one image, uint8 \[n, 32, 32, 3\]"):
            collect(program, bad)


def test_a_head_of_zeros_ranks_nothing() -> None:
    program = tiny_program(depth=2)
    blind = program.with_weights({"head.weight": np.zeros((32, 10), np.float32)})
    images = tiny_images(program.spec, 8)
    with pytest.raises(BudgetError, match="removing units of tiny changes no output on any of 8 images"):
        score(blind, images, collect(blind, images))


def test_shrink_changes_nothing_it_was_given() -> None:
    program = tiny_program()
    before = {n: a.copy() for n, a in program.weights.items()}
    statistics = collect(program, tiny_images(program.spec))
    shrink(program, replace(_plan(program, b00_ffn=(1, 2, 3))), statistics)
    assert all(np.array_equal(program.weights[n], a) for n, a in before.items())


def test_refit_without_enough_images_changes_nothing_for_the_worse() -> None:
    """A fit that does not help on held-out batches is not taken; noise targets are the extreme case."""
    program = tiny_program(depth=1)
    images = tiny_images(program.spec, 96)
    other = program.with_weights({"b00_ffn.fc2.weight": program.weights["b00_ffn.fc2.weight"][::-1]})
    small = shrink(program, _plan(program, b00_mhsa=(0,)), collect(program, images))
    for teacher in (program, other):
        repaired = refit(small, teacher, images)
        with torch.no_grad():
            batch = batches(program.spec, tiny_images(program.spec, 32, seed=9), 32)[0]
            wanted, before, after = (m.blocks(m.stem(batch)) for m in (Vit(teacher), Vit(small), Vit(repaired)))
        assert (after - wanted).square().mean() <= (before - wanted).square().mean()
