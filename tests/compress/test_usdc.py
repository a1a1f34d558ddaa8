"""Budgets, their ramps, and that a model with masks and the one really made smaller are the same function."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevit.compress.gate.threshold import fixed_macs
from edgevit.compress.prune.plan import least_macs
from edgevit.compress.training.distributed import World
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc import (
    Budgets,
    Together,
    check_budgets,
    prepare,
    really_shrink,
    split_budget,
    stage_settings,
    with_crop,
)
from edgevit.errors import BudgetError, TrainingError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.stream import batches, mean_outputs
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

RECIPE = TrainRecipe(ramp=0.8)
SHAPE = {"depth": 3, "dim": 32, "heads": 4, "hidden": 64}


def begun(budgets: Budgets, *, joint: bool = True, program: Program | None = None) -> Together:
    dense = program or tiny_program(**SHAPE)
    prepared = prepare(dense, budgets, tiny_images(dense.spec, 8), RECIPE)
    return Together(Vit(prepared), dense.spec, budgets, RECIPE, World(), joint=joint)


@given(st.floats(0.1, 1.0), st.floats(0.0, 1.0))
def test_the_share_divides_the_saving(macs: float, share: float) -> None:
    found = split_budget(macs, None, share)
    assert found.expected == pytest.approx(macs)
    assert macs <= found.static <= 1.0
    assert split_budget(macs, None, 1.0).static == pytest.approx(macs)
    assert not split_budget(macs, None, 0.0).prunes


def test_a_static_budget_below_the_expected_one_is_all() -> None:
    found = split_budget(0.7, 0.5, 0.6)
    assert (found.expected, found.static, found.gates, found.prunes) == (0.5, 0.5, False, True)


def test_what_cannot_be_reached_is_refused_with_the_least() -> None:
    spec = tiny_program(**SHAPE).spec
    closed = [replace(b, kept=()) for b in spec.branches]
    floor = total_macs(replace(spec, branches=tuple(closed))) / total_macs(spec)
    check_budgets(spec, Budgets(expected=floor + 0.05, static=1.0))
    for budgets in (Budgets(expected=floor / 2, static=1.0), Budgets(expected=floor / 2, static=floor / 2)):
        with pytest.raises(BudgetError, match=f"ask for more than {floor:.1f}"):
            check_budgets(spec, budgets)
    with pytest.raises(BudgetError, match="at most 1"):
        check_budgets(spec, Budgets(expected=0.5, static=1.5))


def test_budgets_come_down_a_ramp_and_stay() -> None:
    together = begun(Budgets(expected=0.4, static=0.6))
    static = [together.static_now(done) for done in np.linspace(0, 1, 21)]
    expected = [together.expected_now(done) for done in np.linspace(0, 1, 21)]
    assert static[0] == expected[0] == 1.0
    assert static == sorted(static, reverse=True)
    assert expected == sorted(expected, reverse=True)
    assert static[16:] == pytest.approx([0.6] * 5)
    assert expected[16:] == pytest.approx([0.4] * 5)
    assert all(e <= s for e, s in zip(expected, static, strict=True))
    assert begun(Budgets(expected=0.4, static=0.6), joint=False).expected_now(0.0) == 0.4


@torch.no_grad()
def test_open_gates_change_nothing_at_first_and_closed_ones_leave_the_mean() -> None:
    dense = tiny_program(**SHAPE)
    images = tiny_images(dense.spec, 8)
    prepared = prepare(dense, Budgets(expected=0.5, static=1.0), images, RECIPE)
    x = batches(dense.spec, images, 8)[0]
    torch.testing.assert_close(Vit(prepared)(x), Vit(dense)(x))
    means = mean_outputs(Vit(dense), [x])
    assert np.array_equal(prepared.weights["b01_ffn.skip"], means["b01_ffn"].numpy())
    assert float(prepared.weights["b01_ffn.gate.bias"][0]) == RECIPE.gate_bias
    assert prepare(dense, Budgets(expected=0.5, static=0.5), images, RECIPE) is dense


def importance(together: Together, seed: int = 0) -> None:
    """Uneven importance as if it had been measured: a head is worth many neurons, the second block's MHSA nothing."""
    rng = np.random.default_rng(seed)
    masks = together.masks
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
    together = Together(model, dense.spec, budgets, RECIPE, World(), joint=True)
    importance(together)
    plan = together.finish()
    assert together.masks is not None
    program = really_shrink(model, plan)
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
        masked = model(x, decide, together.masks.tap)
        torch.testing.assert_close(small(x, decide), masked, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(masked, model(x, decide), atol=1e-2)


def test_gates_cost_what_the_masks_left() -> None:
    together = begun(Budgets(expected=0.4, static=0.5))
    importance(together)
    figures = together.update(0, 1.0)
    assert together.masks is not None
    assert together.gates is not None
    now = really_shrink(together.gates.model, together.masks.plan()).spec
    whole = together.dense_macs
    assert figures["static_macs"] == total_macs(now) / whole <= 0.5
    assert together.gates.fixed == fixed_macs(now) / whole
    assert list(together.gates.costs) == [m / whole for m in macs_by_branch(now)]
    assert together.gates.dead == {2}
    assert together.units() == {b.name: b.units for b in now.branches}
    assert set(together.open_rates()) == {b.name for b in now.branches if b.gate is not None}


def test_pruning_goes_on_until_a_memory_budget_fits() -> None:
    asked: list[int] = []

    def fits(spec: ProgramSpec) -> bool:
        asked.append(total_macs(spec))
        return len(asked) > 6

    together = begun(Budgets(expected=0.6, static=0.6, fits=fits))
    importance(together)
    plan = together.finish()
    assert len(asked) == 7
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < asked[0]
    assert together.masks is not None
    assert [b.kept for b in plan.branches] == [b.kept for b in together.masks.plan().branches]


def test_a_memory_budget_that_nothing_fits_is_refused() -> None:
    together = begun(Budgets(expected=0.6, static=0.6, fits=lambda spec: False))
    importance(together)
    with pytest.raises(BudgetError, match="the most that can be removed"):
        together.finish()


def test_nothing_is_planned_before_importance_says_something() -> None:
    """Importance that is zero everywhere cannot choose: masks stay open, and the end of the stage says why."""
    together = begun(Budgets(expected=0.5, static=0.5))
    figures = together.update(0, 1.0)
    assert figures["static_macs"] == 1.0
    with pytest.raises(TrainingError, match="measured on 0 images of stage 'joint', but needs 32"):
        together.finish()


def test_a_plan_far_below_its_budget_is_refused() -> None:
    """Whatever closed the masks: more would have fitted."""
    together = begun(Budgets(expected=0.6, static=0.6))
    importance(together)
    assert together.reached(together.finish()) == ""
    assert together.masks is not None
    together.masks.masks["b00_ffn"][:] = 0
    with pytest.raises(BudgetError, match=r"60.0% of the MACs were asked for, .*% are left, and .*% more would fit"):
        together.reached(together.finish())
    for mask in together.masks.masks.values():
        mask[:] = 0
    with pytest.raises(BudgetError, match="no attention head of tiny is left of 12"):
        together.reached(together.finish())


def test_a_budget_below_one_head_and_some_neurons_is_refused_at_once() -> None:
    spec = tiny_program(**SHAPE).spec
    least = least_macs(spec) / total_macs(spec)
    with pytest.raises(BudgetError, match="the least of attention and FFN that has to stay"):
        check_budgets(spec, Budgets(expected=least, static=least))


def test_state_comes_back() -> None:
    one, other = begun(Budgets(expected=0.4, static=0.5)), begun(Budgets(expected=0.4, static=0.5))
    importance(one)
    one.update(0, 1.0)
    other.restore(one.state())
    assert other.units() == one.units() != begun(Budgets(expected=0.4, static=0.5)).units()
    assert one.gates is not None
    assert other.gates is not None
    assert (other.gates.costs, other.gates.dead) == (one.gates.costs, one.gates.dead)


def test_the_stages_take_their_own_numbers() -> None:
    joint = stage_settings(RECIPE, joint=True, learns=True, bfloat16=False, first_step=0)
    recover = stage_settings(RECIPE, joint=False, learns=False, bfloat16=False, first_step=3)
    assert (joint.rate, joint.epochs, joint.ema, joint.teacher) == (RECIPE.rate_joint, RECIPE.epochs_joint, 0.0, 0.9)
    assert (recover.rate, recover.epochs, recover.ema) == (RECIPE.rate_recover, RECIPE.epochs_recover, RECIPE.ema)
    assert recover.teacher == 0.0


def test_a_crop_of_its_own() -> None:
    program = tiny_program()
    assert with_crop(program, 0.0) is program
    assert with_crop(program, 1.0).spec.image.crop_pct == 1.0
