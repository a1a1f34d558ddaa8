"""Pruning in training: importance is what it says it is, plans meet budgets, and what is out stays out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from edgevit.errors import BudgetError
from edgevit.models.macs import total_macs
from edgevit.models.program import Program
from edgevit.models.stream import batches
from edgevit.models.vit import Vit
from edgevit.prune.control import MaskControl, MaskSettings
from edgevit.prune.plan import PrunePlan, planned_spec
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
        control.begin(step)
        torch.autograd.backward(F.cross_entropy(model(images, None, control.tap), labels))
        control.observe()
    return control


def left(masks: MaskControl) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.masks.items()}


def test_importance_finds_the_units_that_do_nothing() -> None:
    program = planted()
    masks = measure(program)
    lean = planned_spec(program.spec, without(masks, USELESS))
    plan = masks.replan(1 - total_macs(lean) / total_macs(program.spec))
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
    plan = masks.replan(1 - total_macs(lean) / total_macs(program.spec))
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
    plan = masks.replan(fraction)
    assert total_macs(planned_spec(program.spec, plan)) <= total_macs(program.spec) * (1 - fraction)
    assert [b.kept for b in masks.plan().branches] == [b.kept for b in plan.branches]


def test_what_is_out_stays_out_however_important_it_becomes() -> None:
    masks = measure(tiny_program(**SHAPE))
    masks.replan(0.3)
    before = {name: mask.clone() for name, mask in masks.masks.items()}
    assert any((mask == 0).any() for mask in before.values())
    for name, mask in before.items():
        masks.units[name] = np.where(mask.numpy() == 0, 1e9, masks.units[name])
    for fraction in (0.1, 0.3, 0.5):
        masks.replan(fraction)
        assert all((masks.masks[name] <= mask).all() for name, mask in before.items())
    assert sum(left(masks).values()) < sum(int(mask.sum()) for mask in before.values())


def test_a_branch_that_is_gone_stays_gone_in_the_plan() -> None:
    """The importance of the whole branch, measured while it lived, must not bring a masked unit back into the plan."""
    program = planted()
    masks = measure(program)
    masks.masks["b01_ffn"] = torch.zeros(64)
    masks.whole["b01_ffn"] = 1e6
    plan = masks.replan(0.05)
    assert {b.name: b.kept for b in plan.branches}["b01_ffn"] == ()


def test_a_masked_unit_has_no_part_in_the_importance_of_its_branch() -> None:
    program = tiny_program(**SHAPE)
    masks = MaskControl(Vit(program), EVERY)
    masks.masks["b01_mhsa"] = torch.zeros(4)
    measure(program, steps=1, masks=masks)
    assert masks.whole["b01_mhsa"] == 0.0
    assert masks.whole["b01_ffn"] > 0.0


def test_measurements_fade() -> None:
    program = tiny_program(**SHAPE)
    masks = MaskControl(Vit(program), MaskSettings(measure_every=1, memory=0.5))
    measure(program, steps=1, masks=masks)
    first = masks.units["b00_ffn"].copy()
    masks.masks["b02_ffn"] *= 0
    measure(program, steps=30, masks=masks)
    assert masks.measured == 31
    assert not np.allclose(masks.units["b00_ffn"], first)


def test_only_every_second_step_measures() -> None:
    masks = MaskControl(Vit(tiny_program(**SHAPE)), MaskSettings(measure_every=2))
    measure(tiny_program(**SHAPE), steps=6, masks=masks)
    assert masks.measured == 3


def test_an_impossible_budget_is_refused_with_the_possible_one() -> None:
    masks = measure(tiny_program(**SHAPE), steps=1)
    with pytest.raises(BudgetError, match="the most that can be removed"):
        masks.replan(0.999)


def test_state_comes_back() -> None:
    program = tiny_program(**SHAPE)
    masks, other = measure(program), MaskControl(Vit(program), EVERY)
    masks.replan(0.3)
    other.restore(masks.state())
    for control in (masks, other):
        measure(program, steps=2, masks=control)
    assert [b.kept for b in other.replan(0.4).branches] == [b.kept for b in masks.replan(0.4).branches]
    assert other.measured == masks.measured
