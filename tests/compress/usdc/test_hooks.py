"""Ramps of budgets, and that a model with masks and the one really made smaller are the same function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.compress.budgets import Budgets
from edgevit.compress.gate.threshold import fixed_macs
from edgevit.compress.training.distributed import World
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc.hooks import StageHooks
from edgevit.compress.usdc.stages import apply_prune_plan, prepare
from edgevit.errors import BudgetError, TrainingError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

RECIPE = TrainRecipe(ramp=0.8)
SHAPE = {"depth": 3, "dim": 32, "heads": 4, "hidden": 64}


def begun(budgets: Budgets, *, joint: bool = True, program: Program | None = None) -> StageHooks:
    dense = program or tiny_program(**SHAPE)
    prepared = prepare(dense, budgets, tiny_images(dense.spec, 8), RECIPE)
    return StageHooks(Vit(prepared), dense.spec, budgets, RECIPE, World(), joint=joint)


def test_budgets_come_down_a_ramp_and_stay() -> None:
    hooks = begun(Budgets(expected=0.4, static=0.6))
    static = [hooks.static_now(done) for done in np.linspace(0, 1, 21)]
    expected = [hooks.expected_now(done) for done in np.linspace(0, 1, 21)]
    assert static[0] == expected[0] == 1.0
    assert static == sorted(static, reverse=True)
    assert expected == sorted(expected, reverse=True)
    assert static[16:] == pytest.approx([0.6] * 5)
    assert expected[16:] == pytest.approx([0.4] * 5)
    assert all(e <= s for e, s in zip(expected, static, strict=True))
    assert begun(Budgets(expected=0.4, static=0.6), joint=False).expected_now(0.0) == 0.4


def importance(hooks: StageHooks, seed: int = 0) -> None:
    """Uneven importance as if it had been measured: a head is worth many neurons, the second block's MHSA nothing."""
    rng = np.random.default_rng(seed)
    masks = hooks.masks
    assert masks is not None
    for name in masks.units:
        worth = {"b01_mhsa": 0.0, "b00_mhsa": 20.0, "b02_mhsa": 20.0}.get(name, 1.0)
        masks.units[name] = worth * rng.random(len(masks.units[name])) ** 4
        masks.whole[name] = float(masks.units[name].sum())
    masks.measured, masks.images = 1, masks.settings.fewest_images


def shaken(model: Vit) -> None:
    """Move all weights, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.arrays.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("expected", [0.35, 0.5])
def test_the_shrunk_model_is_the_masked_one(expected: float) -> None:
    """With gates and with pruning alone, whole branches gone included; every gate decision the same."""
    dense = tiny_program(**SHAPE)
    budgets = Budgets(expected=expected, static=0.5)
    prepared = prepare(dense, budgets, tiny_images(dense.spec, 8), RECIPE)
    model = Vit(prepared)
    shaken(model)
    hooks = StageHooks(model, dense.spec, budgets, RECIPE, World(), joint=True)
    importance(hooks)
    plan = hooks.finish()
    assert hooks.masks is not None
    program = apply_prune_plan(model, plan)
    kinds = {b.name: (b.removed, b.units < b.units_total) for b in program.spec.branches}
    assert kinds["b01_mhsa"] == (True, True)
    assert (False, True) in kinds.values()
    assert total_macs(program.spec) <= 0.5 * total_macs(dense.spec)
    assert program.spec.gated == budgets.gates
    small = Vit(program)
    x = batches(dense.spec, tiny_images(dense.spec, 16, seed=3), 16)[0]
    dead = frozenset(i for i, b in enumerate(program.spec.branches) if b.removed)

    def alike(index: int, stream: torch.Tensor) -> torch.Tensor:
        """Decide by the stream, for both models; closed where nothing is left, as in training."""
        return stream.new_zeros(len(stream)) if index in dead else (stream[:, 0].sum(dim=1) > 0).to(stream.dtype)

    for decide in (alike, None) if not budgets.gates else (alike,):
        masked = model(x, decide, hooks.masks.tap)
        torch.testing.assert_close(small(x, decide), masked, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(masked, model(x, decide), atol=1e-2)


def test_gates_cost_what_the_masks_left() -> None:
    hooks = begun(Budgets(expected=0.4, static=0.5))
    importance(hooks)
    figures = hooks.update(0, 1.0)
    assert hooks.masks is not None
    assert hooks.gates is not None
    now = apply_prune_plan(hooks.gates.model, hooks.masks.plan()).spec
    whole = hooks.dense_macs
    assert figures["static_macs"] == total_macs(now) / whole <= 0.5
    assert hooks.gates.fixed == fixed_macs(now) / whole
    assert list(hooks.gates.costs) == [m / whole for m in macs_by_branch(now)]
    assert hooks.gates.dead == {2}
    assert hooks.units() == {b.name: b.units for b in now.branches}
    assert set(hooks.open_rates()) == {b.name for b in now.branches if b.gate is not None}


def test_pruning_goes_on_until_a_memory_budget_fits() -> None:
    asked: list[int] = []

    def fits(spec: ProgramSpec) -> bool:
        asked.append(total_macs(spec))
        return len(asked) > 6

    hooks = begun(Budgets(expected=0.6, static=0.6, fits=fits))
    importance(hooks)
    plan = hooks.finish()
    assert len(asked) == 7
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < asked[0]
    assert hooks.masks is not None
    assert [b.kept for b in plan.branches] == [b.kept for b in hooks.masks.plan().branches]


def test_a_memory_budget_that_nothing_fits_is_refused() -> None:
    hooks = begun(Budgets(expected=0.6, static=0.6, fits=lambda spec: False))
    importance(hooks)
    with pytest.raises(BudgetError, match="the least that can be left"):
        hooks.finish()


def test_nothing_is_planned_before_importance_says_something() -> None:
    """Importance that is zero everywhere cannot choose: masks stay open, and the end of the stage says why."""
    hooks = begun(Budgets(expected=0.5, static=0.5))
    figures = hooks.update(0, 1.0)
    assert figures["static_macs"] == 1.0
    with pytest.raises(TrainingError, match="measured on 0 images of stage 'joint', but needs 32"):
        hooks.finish()


def test_a_plan_far_below_its_budget_is_refused() -> None:
    """Whatever closed the masks: more would have fitted."""
    hooks = begun(Budgets(expected=0.6, static=0.6))
    importance(hooks)
    assert hooks.reached(hooks.finish()) == ""
    assert hooks.masks is not None
    hooks.masks.masks["b00_ffn"][:] = 0
    with pytest.raises(BudgetError, match=r"60.0% of the MACs were asked for, .*% are left, and .*% more would fit"):
        hooks.reached(hooks.finish())
    for mask in hooks.masks.masks.values():
        mask[:] = 0
    with pytest.raises(BudgetError, match="no attention head of tiny is left of 12"):
        hooks.reached(hooks.finish())


def test_state_comes_back() -> None:
    one, other = begun(Budgets(expected=0.4, static=0.5)), begun(Budgets(expected=0.4, static=0.5))
    importance(one)
    one.update(0, 1.0)
    other.restore(one.state())
    assert other.units() == one.units() != begun(Budgets(expected=0.4, static=0.5)).units()
    assert one.gates is not None
    assert other.gates is not None
    assert (other.gates.costs, other.gates.dead) == (one.gates.costs, one.gates.dead)


def test_pruning_begins_at_what_tokens_leave_and_thresholds_settle() -> None:
    """Merges that follow the image cost what they leave on average; a stage ends with the controllers' shifts."""
    dense = tiny_program(**SHAPE)
    planned = tiny_program(**SHAPE, tokens="1:0-6@0.3,2:0-4@0.3")
    budgets = Budgets(expected=0.45, static=0.6, merged=0.8)
    prepared = prepare(planned, budgets, tiny_images(dense.spec, 8), RECIPE)
    hooks = StageHooks(Vit(prepared), dense.spec, budgets, RECIPE, World(), joint=True)
    assert [hooks.static_now(0.0), hooks.static_now(1.0)] == pytest.approx([0.8, 0.6])
    assert hooks.count is not None and hooks.gates is not None and hooks.tokens is not None
    hooks.count(torch.tensor([[10.0, 8.0]]))
    hooks.update(0, 0.0)
    left = np.array([10, 8])
    whole = total_macs(dense.spec)
    assert list(hooks.gates.costs) == [m / whole for m in macs_by_branch(prepared.spec, left=left)]
    assert hooks.gates.fixed == fixed_macs(prepared.spec, left) / whole
    hooks.tokens.effort, hooks.gates.shift = 1.5, 0.25
    settled = hooks.settled(prepared.spec)
    assert [p.threshold for p in settled.merges] == pytest.approx([0.45, 0.45])
    assert {b.gate.threshold for b in settled.branches if b.gate} == {-0.25}
    other = StageHooks(Vit(prepared), dense.spec, budgets, RECIPE, World(), joint=True)
    other.restore(hooks.state())
    assert (other.effort, other.left is not None and other.left.tolist()) == (1.5, [10.0, 8.0])
