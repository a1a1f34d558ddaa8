from __future__ import annotations

import numpy as np

from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.gate.close import close_branches, gates_of
from edgevit.compress.gate.initial import start_gates
from edgevit.compress.gate.threshold import calibrate_thresholds, open_rates
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program
from tests.tiny import tiny_images, tiny_program


def _idle() -> Program:
    """Return a model whose attention of block 2 adds nothing."""
    program = tiny_program(depth=3)
    quiet = {f"b02_mhsa.proj.{part}": 0 * program.weights[f"b02_mhsa.proj.{part}"] for part in ("weight", "bias")}
    return program.with_weights(quiet)


def test_branches_close_until_the_budget_is_met_and_the_idle_one_first() -> None:
    program = _idle()
    images = tiny_images(program.spec, 64)
    started, skips = start_gates(attach_gates(program), images)
    before = skips.losses.copy()
    closed = close_branches(started, program, images, images, 0.7, skips)
    names = [program.spec.branches[i].name for i in closed.order]
    assert names[0] == "b02_mhsa" and len(set(names)) == len(names)
    ran = np.array([i not in closed.order for i in range(6)])
    whole = total_macs(started.spec)
    assert run_macs(started.spec, ran) <= 0.7 * whole
    ran[closed.order[-1]] = True
    assert run_macs(started.spec, ran) > 0.7 * whole
    assert np.array_equal(skips.losses, before)
    assert [b.removed for b in closed.program.spec.branches] == [i in closed.order for i in range(6)]


def test_only_the_last_one_closed_follows_the_image() -> None:
    program = _idle()
    images = tiny_images(program.spec, 64)
    started, skips = start_gates(attach_gates(program), images)
    closed = close_branches(started, program, images, images, 0.7, skips)
    gated = calibrate_thresholds(gates_of(started, closed, skips), images, 0.7)
    rates = open_rates(gated, images).mean(axis=0)
    *early, last = closed.order
    assert rates[early].max() == 0 and 0 < rates[last] < 1
    assert rates[[i for i in range(6) if i not in closed.order]].min() == 1
    # What is closed keeps its weights; effort opens it again.
    assert gated.weights["b02_mhsa.qkv.weight"].shape == program.weights["b02_mhsa.qkv.weight"].shape
    assert open_rates(gated, images, effort=100.0).all()


def test_a_budget_of_everything_closes_nothing() -> None:
    program = _idle()
    images = tiny_images(program.spec, 16)
    started, skips = start_gates(attach_gates(program), images)
    assert close_branches(started, program, images, images, 1.0, skips).order == ()
