"""Freezing every decision at the same mean cost, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgevit.compress.adaptivity import freeze, measure_adaptivity
from edgevit.compress.gate.judge import answers
from edgevit.compress.gate.threshold import Use, usage
from edgevit.program.macs import run_macs, total_macs
from edgevit.program.program import Program
from tests.tiny import tiny_images, tiny_program

PLAN = "1:0-6@0.5,2:0-4@0.5"


def program(*, gated: bool = True, tokens: str = PLAN) -> Program:
    return tiny_program(gated=gated, skip=gated, depth=4, tokens=tokens)


def test_frozen_is_what_mostly_happens_at_the_same_cost() -> None:
    given = program()
    images = tiny_images(given.spec, 40, seed=3)
    use, found = usage(given, images), answers(given, images)
    assert len({*map(tuple, use.ran.tolist())}) > 2 and len({*map(tuple, use.left.tolist())}) > 1
    frozen = freeze(given, use, found.macs)
    spec = frozen.spec
    assert not spec.gated and not spec.adaptive
    again = answers(frozen, images)
    assert len(set(again.image_macs.tolist())) == 1
    assert again.macs == total_macs(spec) == pytest.approx(found.macs, rel=0.03)
    rates = use.ran.mean(axis=0)
    stays = np.array([not b.removed for b in spec.branches])
    assert rates[stays].min() >= rates[~stays].max()
    assert all(b.skip for b in spec.branches if b.removed)


def test_a_point_merges_the_mean_number_where_no_gate_is_in_the_way() -> None:
    given = program(gated=False)
    use = usage(given, tiny_images(given.spec, 40, seed=3))
    costs = [total_macs(given.spec, left=row) for row in use.left]
    frozen = freeze(given, use, float(np.mean(costs)))
    merged = np.stack([16 - use.left[:, 0], use.left[:, 0] - use.left[:, 1]], axis=1).mean(axis=0)
    counts = {p.after: p.count for p in frozen.spec.merges}
    for point, mean in zip(given.spec.merges, merged, strict=True):
        assert counts.get(point.after, 0) == pytest.approx(mean, abs=1.5)
    assert total_macs(frozen.spec) == pytest.approx(np.mean(costs), rel=0.03)


def test_fixed_points_stay_and_gates_alone_come_to_the_nearest_cost() -> None:
    given = program(tokens="1:5")
    images = tiny_images(given.spec, 40, seed=3)
    found = answers(given, images)
    frozen = freeze(given, Use(found.ran, found.left), found.macs)
    gates = [run_macs(frozen.spec, [int(not b.removed) for b in frozen.spec.branches])]
    assert gates == [total_macs(frozen.spec)]
    step = max(m for m in np.diff(sorted({run_macs(given.spec, row) for row in np.tri(9, 8, -1)})))
    assert abs(total_macs(frozen.spec) - found.macs) <= step


def test_what_is_told() -> None:
    given = program()
    images = tiny_images(given.spec, 40, seed=3)
    found, dense = answers(given, images), tiny_program(depth=4)
    labels = found.logits.argmax(axis=1)
    labels[:10] = -1
    whole = total_macs(dense.spec)
    told = measure_adaptivity(given, images, found, whole_macs=whole, labels=labels, original=found.logits)
    assert told is not None
    assert told.images == 40 and told.points == 2 and told.gates == 8 and 0 < told.varying <= 8
    assert told.top1 == 1.0 and told.drift == pytest.approx(0.0, abs=1e-9)
    assert told.frozen_top1 is not None and told.frozen_top1 <= 1.0
    assert told.frozen_drift is not None and told.frozen_drift > 1e-4
    low, *_, high = told.percentiles
    assert low < told.macs < high and told.deviation > 0
    assert "every decision frozen at" in told.said and "instead of 100.0%" in told.said
    silent = measure_adaptivity(given, images, found, whole_macs=whole)
    assert silent is not None and silent.top1 is silent.drift is None and "frozen" not in silent.said


def test_nothing_is_told_where_every_image_costs_the_same() -> None:
    given = program(gated=False, tokens="1:5")
    images = tiny_images(given.spec, 4)
    assert measure_adaptivity(given, images, answers(given, images), whole_macs=1) is None


def test_frozen_gates_ignore_the_image() -> None:
    given = program(tokens="")
    images = tiny_images(given.spec, 24, seed=5)
    use = usage(given, images)
    frozen = freeze(given, use, answers(given, images).macs)
    assert np.array_equal(usage(frozen, images).ran, np.tile([not b.removed for b in frozen.spec.branches], (24, 1)))
    assert replace(frozen.spec, branches=given.spec.branches) == given.spec
