from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgevit.compress.gate.threshold import (
    calibrate_thresholds,
    check_spent,
    expected_macs,
    fixed_macs,
    image_macs,
    moved,
    open_rates,
    usage,
)
from edgevit.errors import BudgetError
from edgevit.program.macs import macs_by_branch, run_macs, total_macs
from edgevit.program.program import Program
from tests.tiny import tiny_images, tiny_program


def test_expected_macs_of_all_open_and_all_closed() -> None:
    program = tiny_program(gated=True, skip=True)
    images = tiny_images(program.spec, 5)
    everything, nothing = open_rates(program, images, effort=1e4), open_rates(program, images, effort=-1e4)
    assert everything.all() and not nothing.any() and everything.shape == (5, 4)
    assert expected_macs(program.spec, everything) == total_macs(program.spec)
    assert expected_macs(program.spec, nothing) == fixed_macs(program.spec)


def test_expected_macs_is_the_mean_over_images() -> None:
    spec = tiny_program(gated=True).spec
    ran = np.array([[1, 0, 0, 1], [0, 0, 1, 1]], bool)
    macs = macs_by_branch(spec)
    wanted = fixed_macs(spec) + ((macs[0] + macs[3]) + (macs[2] + macs[3])) / 2
    assert expected_macs(spec, ran) == pytest.approx(wanted)


def test_an_ungated_branch_always_runs_and_a_removed_one_never() -> None:
    program = tiny_program(gated=True, skip=True, removed=("b01_mhsa",))
    branches = tuple(replace(b, gate=None) if b.name == "b00_ffn" else b for b in program.spec.branches)
    program = program.with_weights({}, replace(program.spec, branches=branches))
    ran = open_rates(program, tiny_images(program.spec), effort=-1e4)
    assert ran[:, 1].all() and not ran[:, [0, 2, 3]].any()
    assert expected_macs(program.spec, ran) == fixed_macs(program.spec)


@pytest.mark.parametrize("budget", [0.75, 0.8, 0.9])
def test_thresholds_meet_the_budget(budget: float) -> None:
    program = tiny_program(gated=True, skip=True, depth=4)
    images = tiny_images(program.spec, 64)
    shifted = calibrate_thresholds(program, images, budget)
    spent = expected_macs(shifted.spec, open_rates(shifted, images)) / total_macs(program.spec)
    assert spent == pytest.approx(budget, abs=0.02)
    moved = {b.gate.threshold for b in shifted.spec.branches if b.gate is not None}
    assert len(moved) == 1 and all(np.array_equal(shifted.weights[n], a) for n, a in program.weights.items())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [0.4, 0.55, 0.7])
def test_few_images_get_the_nearest_there_is(seed: int, budget: float) -> None:
    """Closing one gate moves what later gates see, so spent MACs jump and fall back as the shift moves."""
    program = tiny_program(seed, gated=True, skip=True, depth=2)
    images, whole = tiny_images(program.spec, 8), total_macs(program.spec)
    shifted = calibrate_thresholds(program, images, budget)
    spent = expected_macs(shifted.spec, open_rates(shifted, images)) / whole
    scanned = [expected_macs(program.spec, open_rates(program, images, e)) / whole for e in np.linspace(-5, 5, 401)]
    assert abs(spent - budget) <= min(abs(s - budget) for s in scanned) + 0.03


def constant(program: Program, opened: Sequence[str]) -> Program:
    """Gates that look at no image: those of `opened` branches open, with margins that differ a little."""
    names = [b.name for b in program.spec.branches]
    changed = {f"{n}.gate.weight": np.zeros(program.spec.dim, np.float32) for n in names}
    bias = {n: np.full(1, (1.0 if n in opened else -1.0) + 0.1 * i, np.float32) for i, n in enumerate(names)}
    return program.with_weights(changed | {f"{n}.gate.bias": b for n, b in bias.items()})


def test_a_budget_is_held_from_both_sides() -> None:
    program = tiny_program(gated=True, skip=True, depth=4)
    images, whole = tiny_images(program.spec, 16), total_macs(program.spec)
    half = constant(program, ("b00_mhsa", "b00_ffn", "b01_mhsa", "b01_ffn"))
    spent = expected_macs(half.spec, open_rates(half, images))
    step = max(macs_by_branch(half.spec))
    assert 0.02 * whole < step / 2
    for side in (-1, 1):
        assert check_spent(half, images, spent + side * 0.019 * whole, whole) == ""
        said = check_spent(half, images, spent + side * 0.49 * step, whole)
        assert f"than {spent / whole:.1%} on 16 images: one branch more or less is up to {step / whole:.1%}" in said
        with pytest.raises(BudgetError, match="alike for too many of them. Give more images, and of more kinds"):
            check_spent(half, images, spent + side * 0.51 * step, whole)


def test_equal_images_cannot_meet_a_budget_in_silence() -> None:
    """All gates of all images move together; thresholds take the nearer step, and it is told."""
    program = tiny_program(gated=True, skip=True, depth=3)
    images = np.repeat(tiny_images(program.spec, 1), 16, axis=0)
    shifted = calibrate_thresholds(program, images, 0.6)
    spent = expected_macs(shifted.spec, open_rates(shifted, images)) / total_macs(program.spec)
    assert abs(spent - 0.6) > 0.02
    try:
        said = check_spent(shifted, images, 0.6 * total_macs(program.spec), total_macs(program.spec))
    except BudgetError as error:
        said = str(error)
    assert f"cannot be set nearer to 60.0% of the MACs than {spent:.1%}" in said


@pytest.mark.parametrize("kind", ["mhsa", "ffn"])
def test_gates_that_never_run_a_kind_of_layer_are_refused(kind: str) -> None:
    program = tiny_program(gated=True, skip=True, depth=2)
    images = tiny_images(program.spec, 4)
    alone = constant(program, [b.name for b in program.spec.branches if b.kind != kind])
    spent = expected_macs(alone.spec, open_rates(alone, images))
    with pytest.raises(BudgetError, match=f"let none of 4 images run any {kind.upper()}"):
        check_spent(alone, images, spent, total_macs(alone.spec))


def test_decisions_do_not_depend_on_the_batch() -> None:
    program = tiny_program(gated=True, skip=True)
    images = tiny_images(program.spec, 20)
    together = open_rates(program, images)
    alone = np.concatenate([open_rates(program, images[i : i + 1]) for i in range(20)])
    np.testing.assert_array_equal(together, alone)
    assert 0 < together.mean() < 1


@pytest.mark.parametrize("gated", [False, True])
def test_merges_move_with_the_gates_as_effort_moves_them(gated: bool) -> None:
    """The budget is met by one shift of everything, and effort 0 is then what that effort was."""
    program = tiny_program(gated=gated, skip=gated, depth=4, image=(64, 64), tokens="1:0-27@0.8,2:0-17@0.8")
    images = tiny_images(program.spec, 24)
    low, high = (usage(program, images, effort) for effort in (-20, 20))
    ends = [expected_macs(program.spec, *use) / total_macs(program.spec) for use in (low, high)]
    assert ends[1] > 0.95 and ends[0] < ends[1] - 0.2
    budget = sum(ends) / 2
    shifted = calibrate_thresholds(program, images, budget)
    use = usage(shifted, images)
    assert expected_macs(shifted.spec, *use) / total_macs(program.spec) == pytest.approx(budget, abs=0.03)
    shift = (shifted.spec.merges[0].threshold or 0.0) - 0.8
    assert shift != 0
    for branch in shifted.spec.branches:
        assert branch.gate is None or branch.gate.threshold == pytest.approx(-10 * shift)
    assert moved(moved(program.spec, 0.5), -0.5).merges[1].threshold == pytest.approx(0.8)
    again = usage(program, images, 10 * shift)
    assert np.array_equal(again.ran, use.ran) and np.array_equal(again.left, use.left)


def test_every_image_costs_what_ran_for_it() -> None:
    program = tiny_program(gated=True, skip=True, depth=4, tokens="1:0-6@0.3,2:0-4@0.3")
    use = usage(program, tiny_images(program.spec, 20, seed=3))
    wanted = [run_macs(program.spec, ran, left) for ran, left in zip(*use, strict=True)]
    assert image_macs(program.spec, *use).tolist() == wanted and len(set(wanted)) > 2
