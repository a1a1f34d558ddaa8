from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevit.gate.threshold import calibrate_thresholds, expected_macs, fixed_macs, open_rates
from edgevit.models.macs import macs_by_branch, total_macs
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


def test_decisions_do_not_depend_on_the_batch() -> None:
    program = tiny_program(gated=True, skip=True)
    images = tiny_images(program.spec, 20)
    together = open_rates(program, images)
    alone = np.concatenate([open_rates(program, images[i : i + 1]) for i in range(20)])
    np.testing.assert_array_equal(together, alone)
    assert 0 < together.mean() < 1
