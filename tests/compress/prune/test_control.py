"""Pruning in training: importance is what it says it is, plans meet budgets, and what is out may come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.prune.control import MaskControl, MaskSettings
from edgevit.compress.prune.plan import PrunePlan, planned_spec
from edgevit.errors import BudgetError, TrainingError
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

SHAPE = {"depth": 3, "dim": 32, "heads": 4, "hidden": 64}
EVERY = MaskSettings(measure_every=1)
USELESS = {"b00_mhsa": (1, 3), "b01_mhsa": (0, 1, 2, 3), "b01_ffn": tuple(range(5, 37)), "b02_ffn": tuple(range(64))}


def planted() -> Program:
    """A Program in which the units `USELESS` reach nothing: their rows of the output linear are zero."""
    program = tiny_program(**SHAPE)
    changed = {}
    for name, units in USELESS.items():
        out, wide = (f"{name}.proj", 8) if name.endswith("mhsa") else (f"{name}.fc2", 1)
        weight = program.weights[f"{out}.weight"].copy()
        for unit in units:
            weight[unit * wide : (unit + 1) * wide] = 0.0
        changed[f"{out}.weight"] = weight
    return program.with_weights(changed)


def measure(program: Program, steps: int = 4, size: int = 8, masks: MaskControl | None = None) -> MaskControl:
    """Importance from a few batches of cross-entropy against random labels."""
    model = Vit(program)
    control = masks or MaskControl(model, EVERY)
    for step in range(steps):
        images = batches(program.spec, tiny_images(program.spec, size, seed=step), size)[0]
        labels = torch.arange(size) % program.spec.head.classes
        control.begin(step, size)
        torch.autograd.backward(F.cross_entropy(model(images, None, control.tap), labels))
        control.observe()
    return control


def left(masks: MaskControl) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.masks.items()}


def test_importance_finds_the_units_that_do_nothing() -> None:
    program = planted()
    masks = measure(program)
    lean = planned_spec(program.spec, without(masks, USELESS))
    plan = masks.replan(total_macs(lean) / total_macs(program.spec))
    kept = {b.name: set(b.kept) for b in plan.branches}
    assert kept == {b.name: set(range(b.units_total)) - set(USELESS.get(b.name, ())) for b in program.spec.branches}


def without(masks: MaskControl, gone: dict[str, tuple[int, ...]]) -> PrunePlan:
    full = masks.plan()
    branches = tuple(
        type(b)(name=b.name, kept=tuple(u for u in b.kept if u not in gone.get(b.name, ())), loss=0.0)
        for b in full.branches
    )
    return type(full)(branches=branches, macs=0, budget_macs=0)


def test_without_planting_other_units_would_go() -> None:
    program = tiny_program(**SHAPE)
    masks = measure(program)
    lean = planned_spec(program.spec, without(masks, USELESS))
    plan = masks.replan(total_macs(lean) / total_macs(program.spec))
    assert any(set(b.kept) & set(USELESS.get(b.name, ())) for b in plan.branches)


def test_importance_is_the_mean_square_of_every_samples_own_derivative() -> None:
    program = tiny_program(**SHAPE)
    masks = measure(program, steps=1, size=5)
    model, units, whole = Vit(program), np.zeros((5, 4)), np.zeros(5)
    images = batches(program.spec, tiny_images(program.spec, 5), 5)[0]
    for sample in range(5):
        mask = torch.ones(4, requires_grad=True)

        def tap(name: str, value: Tensor, mask: Tensor = mask) -> Tensor:
            return value * mask.repeat_interleave(8) if name == "b01_mhsa.proj" else value

        torch.autograd.backward(F.cross_entropy(model(images[sample : sample + 1], None, tap), torch.tensor([sample])))
        assert mask.grad is not None
        units[sample], whole[sample] = mask.grad.numpy(), mask.grad.sum()
    np.testing.assert_allclose(masks.units["b01_mhsa"], (units**2).mean(axis=0), rtol=1e-4)
    assert masks.whole["b01_mhsa"] == pytest.approx((whole**2).mean(), rel=1e-4)


def test_a_mask_is_that_units_absence() -> None:
    program = tiny_program(**SHAPE)
    masks = MaskControl(Vit(program), EVERY)
    masks.masks["b01_mhsa"][2] = 0
    masks.masks["b00_ffn"][7] = 0
    changed = {}
    for name, rows in (("b01_mhsa.proj", slice(16, 24)), ("b00_ffn.fc2", slice(7, 8))):
        weight = program.weights[f"{name}.weight"].copy()
        weight[rows] = 0.0
        changed[f"{name}.weight"] = weight
    images = batches(program.spec, tiny_images(program.spec, 4), 4)[0]
    with torch.no_grad():
        found = Vit(program)(images, None, masks.tap)
        torch.testing.assert_close(found, Vit(program.with_weights(changed))(images))
        assert not torch.allclose(found, Vit(program)(images), atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 0.7), st.integers(0, 3))
def test_a_plan_meets_its_budget(fraction: float, seed: int) -> None:
    program = tiny_program(seed, **SHAPE)
    masks = MaskControl(Vit(program), EVERY)
    rng = np.random.default_rng(seed)
    masks.units = {name: rng.random(len(value)) for name, value in masks.units.items()}
    masks.whole = {name: float(value.sum()) for name, value in masks.units.items()}
    plan = masks.replan(1 - fraction)
    assert total_macs(planned_spec(program.spec, plan)) <= total_macs(program.spec) * (1 - fraction)
    assert [b.kept for b in masks.plan().branches] == [b.kept for b in plan.branches]


def test_in_the_end_what_is_out_stays_out_however_important_it_becomes() -> None:
    masks = measure(tiny_program(**SHAPE))
    masks.replan(0.7)
    before = {name: mask.clone() for name, mask in masks.masks.items()}
    assert any((mask == 0).any() for mask in before.values())
    for name, mask in before.items():
        masks.units[name] = np.where(mask.numpy() == 0, 1e9, masks.units[name])
    for fraction in (0.1, 0.3, 0.5):
        masks.replan(1 - fraction, returns=False)
        assert all((masks.masks[name] <= mask).all() for name, mask in before.items())
    assert sum(left(masks).values()) < sum(int(mask.sum()) for mask in before.values())


def test_a_branch_that_is_gone_stays_gone_in_the_plan() -> None:
    """The importance of the whole branch, measured while it lived, must not bring a masked unit back into the plan."""
    program = planted()
    masks = measure(program)
    masks.masks["b01_ffn"] = torch.zeros(64)
    masks.whole["b01_ffn"] = 1e6
    plan = masks.replan(0.95, returns=False)
    assert {b.name: b.kept for b in plan.branches}["b01_ffn"] == ()


def test_a_masked_unit_has_no_part_in_the_importance_of_its_branch() -> None:
    program = tiny_program(**SHAPE)
    masks = MaskControl(Vit(program), EVERY)
    masks.masks["b01_mhsa"] = torch.zeros(4)
    measure(program, steps=1, masks=masks)
    assert masks.whole["b01_mhsa"] == 0.0
    assert masks.whole["b01_ffn"] > 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.sampled_from([0.2, 0.3, 0.4]), st.data())
def test_a_unit_with_a_large_derivative_comes_back_while_the_budget_comes_down(
    seed: int, fraction: float, data: st.DataObject
) -> None:
    masks = measure(tiny_program(seed, **SHAPE))
    masks.replan(1 - fraction)
    out = [(n, i) for n, mask in masks.masks.items() for i in np.flatnonzero(mask.numpy() == 0).tolist()]
    name, unit = data.draw(st.sampled_from(out))
    masks.units[name][unit] = 1e9
    masks.replan(0.9 - fraction)
    assert masks.masks[name][unit] == 1
    assert total_macs(planned_spec(masks.spec, masks.plan())) <= (0.9 - fraction) * total_macs(masks.spec)


def test_a_unit_that_is_out_is_still_measured() -> None:
    """Its mask has a derivative at 0; a whole branch's importance is what it was while the branch lived."""
    program = tiny_program(**SHAPE)
    masks = measure(program, steps=1)
    masks.masks["b01_ffn"] = torch.zeros(64)
    masks.masks["b00_mhsa"][2] = 0
    before = {n: u.copy() for n, u in masks.units.items()}, dict(masks.whole)
    measure(program, steps=3, masks=masks)
    assert masks.units["b00_mhsa"][2] > 0.0 != before[0]["b00_mhsa"][2]
    assert (masks.units["b01_ffn"] > 0).all() and not np.array_equal(masks.units["b01_ffn"], before[0]["b01_ffn"])
    assert masks.whole["b01_ffn"] == pytest.approx(before[1]["b01_ffn"])


def test_equals_do_not_swap_places() -> None:
    """A unit that is out has to be worth more than those that are in, by more than a little."""
    masks = measure(tiny_program(**SHAPE))
    masks.replan(0.7)
    before = left(masks), {n: m.clone() for n, m in masks.masks.items()}
    for name, mask in masks.masks.items():
        masks.units[name] = np.where(mask.numpy() > 0, masks.units[name], masks.units[name] * 1.2)
    masks.replan(0.7)
    assert all(torch.equal(masks.masks[n], m) for n, m in before[1].items())


def test_derivatives_that_are_all_zero_are_no_measurement() -> None:
    """As behind a new head: neither counted, nor mixed into what is known."""
    program = tiny_program(**SHAPE)
    zero = program.with_weights({"head.weight": np.zeros((32, 10), np.float32)})
    masks = measure(zero)
    assert (masks.measured, masks.images, masks.ready) == (0, 0, False)
    masks = measure(program)
    assert (masks.measured, masks.images, masks.ready) == (4, 32, True)
    known = {n: u.copy() for n, u in masks.units.items()}
    model = Vit(zero)
    masks.begin(0, 4)
    torch.autograd.backward(model(batches(program.spec, tiny_images(program.spec), 4)[0], None, masks.tap).sum())
    masks.observe()
    assert masks.measured == 4
    assert all(np.array_equal(masks.units[n], u) for n, u in known.items())


def test_a_branch_behind_a_gate_that_is_closed_for_good_keeps_what_it_was_worth() -> None:
    program = tiny_program(gated=True, skip=True, **SHAPE)
    masks, model = measure(program), Vit(program)
    masks.masks["b01_ffn"] = torch.zeros(64)
    known, live = masks.units["b01_ffn"].copy(), masks.units["b00_ffn"].copy()
    masks.begin(0, 8)
    images = batches(program.spec, tiny_images(program.spec, 8, seed=9), 8)[0]
    torch.autograd.backward(
        F.cross_entropy(model(images, lambda i, x: torch.full((len(x),), float(i != 3)), masks.tap), torch.arange(8))
    )
    masks.observe()
    assert np.array_equal(masks.units["b01_ffn"], known)
    assert not np.array_equal(masks.units["b00_ffn"], live)


def test_an_earlier_checkpoint_is_refused() -> None:
    masks = measure(tiny_program(**SHAPE))
    state = masks.state()
    del state["images"]
    with pytest.raises(TrainingError, match="in which units never came back"):
        masks.restore(state)


def test_measurements_fade() -> None:
    program = tiny_program(**SHAPE)
    masks = MaskControl(Vit(program), MaskSettings(measure_every=1, memory=0.5))
    measure(program, steps=1, masks=masks)
    first = masks.units["b00_ffn"].copy()
    masks.masks["b02_ffn"] *= 0
    measure(program, steps=30, masks=masks)
    assert masks.measured == 31
    assert not np.allclose(masks.units["b00_ffn"], first)


def test_every_step_measures_until_that_is_enough_and_then_every_second() -> None:
    masks = MaskControl(Vit(tiny_program(**SHAPE)), MaskSettings(measure_every=2, fewest_images=24))
    measure(tiny_program(**SHAPE), steps=6, masks=masks)
    assert masks.measured == 4  # steps 0, 1, 2 and 4


def test_an_impossible_budget_is_refused_with_the_possible_one() -> None:
    masks = measure(tiny_program(**SHAPE), steps=1)
    with pytest.raises(BudgetError, match="the least that can be left"):
        masks.replan(0.001)


def test_state_comes_back() -> None:
    program = tiny_program(**SHAPE)
    masks, other = measure(program), MaskControl(Vit(program), EVERY)
    masks.replan(0.7)
    other.restore(masks.state())
    for control in (masks, other):
        measure(program, steps=2, masks=control)
    assert [b.kept for b in other.replan(0.6).branches] == [b.kept for b in masks.replan(0.6).branches]
    assert (other.measured, other.images) == (masks.measured, masks.images) == (6, 48)
