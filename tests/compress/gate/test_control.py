"""Gates in training: who shares a decision, what a decision's derivative is, and where expected MACs end up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevit.compress.gate.control import GateControl, GateSettings
from edgevit.compress.gate.subgroups import parse_groups, split
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_program

SIZE = 12


def control(groups: str = "batch", *, depth: int = 2, **settings: Any) -> GateControl:
    model = Vit(tiny_program(gated=True, skip=True, depth=depth))
    return GateControl(model, GateSettings(groups=parse_groups(groups), seed=3, **settings))


def stream(gates: GateControl, size: int = SIZE, seed: int = 0) -> Tensor:
    spec = gates.model.spec
    return torch.randn(size, spec.tokens, spec.dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", ["batch", "average 5", "random 1 4", "recursive", "halving", "sample"])
def test_all_samples_of_a_group_share_one_decision(groups: str) -> None:
    gates = control(groups, noise=3.0)
    seen = set()
    for step in range(20):
        gates.begin(step, 0, 0.0, SIZE, 1.0)
        decisions = gates.decide(0, stream(gates, seed=step)).detach().round().numpy()
        assert set(decisions) <= {0.0, 1.0}
        members = split(parse_groups(groups), SIZE, (3, step, 0))
        shared = [set(decisions[members == group]) for group in range(members.max() + 1)]
        assert all(len(values) == 1 for values in shared)
        seen |= {tuple(sorted(values)) for values in shared}
    assert len(seen) == 2  # some groups open, some closed: the test would notice a gate that is stuck


def test_samples_by_themselves_decide_differently() -> None:
    gates = control("sample", noise=0.0)
    gates.begin(0, 0, 0.0, SIZE, 1.0)
    x = stream(gates)
    decisions = gates.decide(0, x).detach().round()
    logits = gates.model.gate_logit(gates.model.spec.branches[0], x)
    assert torch.equal(decisions, (logits > 0).float())
    assert set(decisions.tolist()) == {0.0, 1.0}


def test_a_group_decides_by_the_mean_of_its_logits() -> None:
    gates = control("batch", noise=0.0)
    for seed in range(8):
        gates.begin(seed, 0, 0.0, SIZE, 1.0)
        x = stream(gates, seed=seed)
        mean = gates.model.gate_logit(gates.model.spec.branches[0], x).mean()
        assert gates.decide(0, x).detach().round().tolist() == [float(mean > 0)] * SIZE


def test_splits_and_noise_depend_on_seed_step_and_micro_batch_alone() -> None:
    drawn = []
    for step, micro in ((5, 0), (5, 0), (6, 0), (5, 1)):
        gates = control("random 1 4", noise=3.0)
        gates.begin(step, micro, 0.0, SIZE, 1.0)
        drawn.append([gates.decide(i, stream(gates)).detach().round().tolist() for i in range(4)])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != drawn[3]
    assert drawn[0][0] != drawn[0][1]  # and every branch has its own


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_mean_derivative_of_decisions_is_the_exact_one_for_a_quadratic_loss(noise: float) -> None:
    """For Loss(d) = a d + b d^2 / 2 that of the expectation is p (1 - p) / noise * (Loss(1) - Loss(0))."""
    found: list[float] = []
    a, b = -3.0, 2.9  # flat where the gate is open, as for a branch whose weights are trained
    gates = control("sample", noise=noise)
    x = stream(gates, 1).expand(4096, -1, -1)
    bias = gates.model.array("b00_mhsa.gate.bias")
    logit = gates.model.gate_logit(gates.model.spec.branches[0], x[:1]).detach()
    for step in range(8):
        gates.begin(step, 0, 0.0, len(x), 1.0)
        decisions = gates.decide(0, x)
        bias.grad = None
        torch.autograd.backward((a * decisions + b * decisions**2 / 2).mean())
        assert bias.grad is not None
        found.append(float(bias.grad))
    odds = float(torch.sigmoid(logit / noise))
    assert float(np.mean(found)) == pytest.approx(odds * (1 - odds) / noise * (a + b / 2), rel=0.05)


def test_a_straight_derivative_is_that_of_the_noisy_sigmoid_and_macs_count_as_drawn() -> None:
    gates = control("sample", noise=2.0, derivative="straight")
    gates.set_costs(0.1, [0.2] * 4)
    gates.begin(5, 1, 0.0, SIZE, 0.25)
    x = stream(gates)
    decisions = gates.decide(0, x)
    torch.autograd.backward(decisions.sum())
    drawn = np.random.default_rng((3, 5, 1, 0)).random(SIZE)
    logits = gates.model.gate_logit(gates.model.spec.branches[0], x).detach()
    soft = torch.sigmoid(logits / 2.0 + torch.from_numpy(np.log(drawn / (1 - drawn))).float())
    assert torch.equal(decisions.detach(), (soft > 0.5).float()) and 0 < float(decisions.detach().mean()) < 1
    found = gates.model.array("b00_mhsa.gate.bias").grad
    assert found is not None
    assert float(found) == pytest.approx(float((soft * (1 - soft) / 2.0).sum()), rel=1e-4)
    gates.penalty()
    assert gates.update()["macs"] == pytest.approx(0.1 + 0.2 * float(decisions.detach().mean()))


def test_a_group_counts_once() -> None:
    gates = control("average 4", noise=2.0)
    gates.begin(0, 0, 0.0, SIZE, 1.0)
    x = stream(gates)
    weights = torch.arange(1.0, SIZE + 1)
    decisions = gates.decide(0, x)
    torch.autograd.backward((decisions * weights).sum())
    means = gates.model.gate_logit(gates.model.spec.branches[0], x).detach().reshape(-1, 4).mean(dim=1)
    odds, opened = torch.sigmoid(means / 2.0), decisions.detach().reshape(-1, 4)[:, 0]
    expected = (torch.where(opened > 0, 1 - odds, odds) / 4.0 * weights.reshape(-1, 4).sum(dim=1)).sum()
    found = gates.model.array("b00_mhsa.gate.bias").grad
    assert found is not None
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_without_noise_gates_have_a_derivative_of_zero_and_not_none() -> None:
    gates = control("sample", noise=0.0)
    gates.begin(0, 0, 0.0, SIZE, 1.0)
    torch.autograd.backward(gates.decide(0, stream(gates)).sum() + gates.penalty())
    found = gates.model.array("b00_mhsa.gate.bias").grad
    assert found is not None and float(found) == 0.0


def test_noise_is_gone_before_the_stage_ends() -> None:
    gates = control("sample", noise=50.0)
    x = stream(gates)
    plain = (gates.model.gate_logit(gates.model.spec.branches[0], x) > 0).float()
    gates.begin(0, 0, 0.1, SIZE, 1.0)
    assert not torch.equal(gates.decide(0, x).detach().round(), plain)
    gates.begin(0, 0, 0.8, SIZE, 1.0)
    assert torch.equal(gates.decide(0, x).detach().round(), plain)


@pytest.mark.parametrize("budget", [0.35, 0.6, 0.85])
def test_settled_gates_meet_the_budget_by_a_shift_and_learn_nothing(budget: float) -> None:
    """Saturated gates do not feel a price: without the shift all would stay open."""
    gates = control("sample", noise=1.0)
    gates.set_costs(0.1, [0.3, 0.2, 0.2, 0.2])
    for index in range(4):
        gates.model.array(f"{gates.model.spec.branches[index].name}.gate.bias").data.fill_(8.0 + 0.1 * index)
    spent = []
    for step in range(60):
        gates.begin(step, 0, 0.5 if step < 10 else 0.9, SIZE, budget)
        decided = [gates.decide(i, stream(gates, seed=100 * step + i)) for i in range(4)]
        torch.autograd.backward(torch.stack(decided).sum() * 0.0 + gates.penalty())
        spent.append(gates.update()["macs"])
        assert (gates.shift is None) == (step < 10)
    assert np.mean(spent[:10]) > 0.98
    assert np.mean(spent[-30:]) == pytest.approx(budget, abs=0.04)


def test_a_dead_branch_is_closed_and_costs_nothing() -> None:
    gates = control("sample", noise=0.0)
    gates.set_costs(0.1, [0.2, 0.2, 0.2, 0.2], frozenset({1}))
    gates.begin(0, 0, 0.0, SIZE, 0.0)
    assert gates.decide(1, stream(gates)).abs().sum() == 0
    gates.penalty()
    assert gates.update()["macs"] == pytest.approx(0.1)


def test_the_penalty_is_the_price_of_the_gap_and_half_its_square() -> None:
    gates = control("sample", noise=0.0, stiffness=80.0)
    gates.set_costs(0.1, [0.4, 0.3, 0.1, 0.1])
    gates.price = 3.0
    gates.begin(0, 0, 0.0, SIZE, 0.3)
    opened = [float(gates.decide(i, stream(gates, seed=i)).detach().mean()) for i in range(2)]
    over = 0.1 + 0.4 * opened[0] + 0.3 * opened[1] - 0.3
    assert abs(over) > 0.01
    assert float(gates.penalty().detach()) == pytest.approx(3.0 * over + 40.0 * over**2, rel=1e-5)
    figures = gates.update()
    assert figures["macs"] == pytest.approx(over + 0.3)
    assert gates.price == figures["price"] == pytest.approx(3.0 + 0.5 * over)


def test_the_price_stays_within_its_limit() -> None:
    gates = control("sample", noise=0.0, price_rate=5.0, price_limit=7.0)
    gates.set_costs(0.5, [0.1] * 4)
    for budget, limit in ((0.0, 7.0), (1.0, -7.0)):
        for step in range(40):
            gates.begin(step, 0, 0.0, SIZE, budget)
            gates.penalty()
            gates.update()
        assert gates.price == limit


def test_state_comes_back() -> None:
    gates, other = control(), control()
    gates.set_costs(0.1, [0.2] * 4)
    gates.begin(0, 0, 0.0, SIZE, 0.3)
    gates.decide(0, stream(gates))
    gates.penalty()
    gates.update()
    gates.begin(1, 0, 0.9, SIZE, 0.3)
    gates.decide(0, stream(gates))
    gates.update()
    other.restore(gates.state())
    assert (other.price, other.shift, other.opened) == (gates.price, gates.shift, gates.opened)
    assert gates.price != 0.0 and gates.shift
    assert gates.opened != control().opened


# What each of 8 branches is worth to a task loss that falls by that much when it runs.
WORTH = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
COST, FIXED, BUDGET = 0.12, 0.04, 0.52


def descend(*, steps: int = 300, ramp: float = 0.8, groups: str = "recursive", **settings: float) -> np.ndarray:
    """Learn the gates' biases alone against `WORTH`; MACs of every step over the budget of the moment."""
    gates = control(groups, depth=4, noise_until=1.0, **settings)
    gates.set_costs(FIXED, [COST] * 8)
    biases = [gates.model.array(f"{b.name}.gate.bias") for b in gates.model.spec.branches]
    for bias in biases:
        torch.nn.init.constant_(bias, 2.0)
    optimiser = torch.optim.Adam(biases, lr=2e-2)
    gaps = []
    for step in range(steps):
        done = step / steps
        budget = 1 + (BUDGET - 1) * (min(1.0, done / ramp) if ramp else 1.0)
        gates.begin(step, 0, done, 32, budget)
        x = stream(gates, 32, seed=step)
        closed = torch.stack([(1 - gates.decide(i, x)).mean() * float(WORTH[i]) for i in range(8)]).sum()
        optimiser.zero_grad()
        torch.autograd.backward(closed + gates.penalty())
        optimiser.step()
        gaps.append(gates.update()["macs"] - budget)
    return np.array(gaps)


def test_gates_settle_instead_of_hovering() -> None:
    gates = control("sample", depth=4)
    gates.set_costs(FIXED, [COST] * 8)
    biases = [gates.model.array(f"{b.name}.gate.bias") for b in gates.model.spec.branches]
    for bias in biases:
        torch.nn.init.constant_(bias, 2.0)
    optimiser = torch.optim.Adam(biases, lr=5e-2)
    worth = torch.tensor(WORTH)
    for step in range(300):
        gates.begin(step, 0, 0.0, 32, BUDGET)
        # Every branch's loss falls by its worth and is flat where it is open: its weights are of the best scale.
        open_ = torch.stack([gates.decide(i, stream(gates, 32, seed=step)) for i in range(8)], dim=1)
        optimiser.zero_grad()
        torch.autograd.backward((worth * (1 - open_) ** 2).mean(dim=0).sum() + gates.penalty())
        optimiser.step()
        gates.update()
    odds = torch.stack([torch.sigmoid(bias.detach()[0]) for bias in biases]).numpy()
    assert odds[-3:].min() > 0.9 and odds[:4].max() < 0.2


def lowest(gaps: np.ndarray) -> float:
    """How far 20 steps together were below the budget at most, once the first noisy fifth is over."""
    return float(np.convolve(gaps, np.ones(20) / 20, mode="valid")[len(gaps) // 5 :].min())


@pytest.mark.parametrize("groups", ["recursive", "sample", "batch"])
def test_expected_macs_come_down_to_the_budget_and_do_not_collapse_below(groups: str) -> None:
    gaps = descend(groups=groups)
    assert abs(gaps[-60:].mean()) < 0.03
    assert lowest(gaps) > -0.08


def test_a_price_that_integrates_the_whole_gap_from_the_first_step_collapses() -> None:
    """UVC's dual (see the module's docstring): the test above would tell."""
    gaps = descend(ramp=0.0, stiffness=0.0, price_rate=0.5, price_limit=1e9)
    assert lowest(gaps) < -0.15


def test_settings_are_frozen() -> None:
    settings = control().settings
    assert replace(settings, seed=4).seed == 4
    with pytest.raises(AttributeError):
        settings.seed = 4  # type: ignore[misc]
