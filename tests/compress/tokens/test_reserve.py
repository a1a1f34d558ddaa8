"""A point that merges nothing as calibrated, and with little effort makes a model cheap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from edgevit.compress.tokens.reserve import REACH, Reserve, find_reserve, opened, reach
from edgevit.compress.tokens.search import follow
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.tokens import pair_counts
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def with_point(program: Program, reserve: Reserve) -> Program:
    spec = opened(program.spec)
    return program.with_weights(reserve.shifts, replace(spec, merges=(reserve.point, *spec.merges)))


def test_late_points_get_one_in_front_that_reaches_a_third() -> None:
    program = tiny_program(depth=12, image=(128, 128), tokens="5:40,7:40")
    work = batches(program.spec, tiny_images(program.spec, 6), 4)
    found = find_reserve(program, work)
    assert found is not None and found.point.shift
    whole = with_point(program, found).spec
    assert reach(opened(program.spec)) > REACH >= reach(whole)
    # No later one would do.
    names = [branch.name for branch in program.spec.branches if branch.kind == "mhsa"]
    later = replace(found.point, after=names[names.index(found.point.after) + 1])
    assert reach(replace(whole, merges=(later, *whole.merges[1:]))) > REACH


def test_it_merges_nothing_as_calibrated_and_all_it_may_with_little_effort() -> None:
    program = tiny_program(depth=12, image=(128, 128), tokens="5:40,7:40")
    work = batches(program.spec, tiny_images(program.spec, 6), 4)
    found = find_reserve(program, work)
    assert found is not None
    model = Vit(with_point(program, found)).eval()
    with torch.no_grad():
        left = torch.cat([model.answer(batch).tokens[:, 0] for batch in work])
        assert (left == program.spec.patches).all()
        # Just below its threshold is the image that would be the first to merge.
        left = torch.cat([model.answer(batch, -1e-3).tokens[:, 0] for batch in work])
        fewest, *_, most = pair_counts(found.point, program.spec.tokens)[1:]
        assert sorted(left.tolist())[:2] == [program.spec.patches - fewest, program.spec.patches]
        left = torch.cat([model.answer(batch, -np.inf).tokens[:, 0] for batch in work])
        assert (left == program.spec.patches - most).all()


def test_plans_that_reach_it_already_or_begin_at_once_get_none() -> None:
    early = tiny_program(depth=12, image=(128, 128), tokens="1:40,3:30,5:20")
    assert reach(opened(early.spec)) <= REACH
    for program in (early, tiny_program(depth=4, image=(64, 64), tokens="1:8")):
        assert find_reserve(program, batches(program.spec, tiny_images(program.spec, 2), 2)) is None


def test_what_it_costs_is_saved_elsewhere() -> None:
    program = tiny_program(depth=12, image=(128, 128), tokens="5:40,7:40")
    images, budget = tiny_images(program.spec, 8), total_macs(program.spec)
    found = follow(program, images, budget, reference=program, say=lambda _: None, always=True)
    assert found.follows is not None and len(found.follows.spec.merges) == 3 and found.follows.macs <= budget
    assert set(found.follows.shifts) == {f"{found.follows.spec.merges[0].after}.merge.shift"}
    plain = follow(program, images, budget, reference=program, say=lambda _: None, always=True, spare=False).follows
    assert plain is not None and [p.after for p in plain.spec.merges] == [p.after for p in program.spec.merges]
