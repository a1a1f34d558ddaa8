"""Linear maps in the place of skipped branches: what is fitted, and which branches are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.stand_ins import Alone, alone, choose, fit, inputs, table, together
from edgevit.images.image_set import ImageSet
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def test_a_branch_that_is_linear_is_met_exactly() -> None:
    program = tiny_program(depth=2)
    model, branch = Vit(program).eval(), program.spec.branches[1]
    with torch.no_grad():
        streams = [model.stem(batch) for batch in batches(program.spec, tiny_images(program.spec, 96))]
        true = 0.1 * torch.randn(program.spec.dim + program.spec.stem.prefix + 1, program.spec.dim)
        pairs = [(x, x + inputs(model, branch, x) @ true) for x in streams]
        linear, constant, missed = fit(model, branch, pairs)
        x, target = pairs[0]
        assert missed < 0.01
        assert torch.allclose(x + inputs(model, branch, x) @ linear, target, atol=0.02)
        assert not torch.allclose(x + inputs(model, branch, x) @ constant, target, atol=0.02)


def test_every_branch_is_skipped_alone_and_saves_what_its_map_does_not_cost() -> None:
    program = tiny_program(depth=2)
    images = tiny_images(program.spec, 100)
    rows = alone(program, images[:90], images[90:])
    whole = total_macs(program.spec)
    assert [r.branch for r in rows] == [b.name for b in program.spec.branches]
    assert [r.constant_saved * whole for r in rows] == pytest.approx(macs_by_branch(program.spec))
    tokens = program.spec.tokens
    assert (rows[0].constant_saved - rows[0].linear_saved) * whole == pytest.approx(tokens * program.spec.dim**2)
    assert all(r.constant_drift > 0 and r.linear_drift > 0 for r in rows[:-1])


def _alone(branch: str, constant: float, linear: float) -> Alone:
    return Alone(
        branch=branch,
        missed=0.5,
        constant_drift=constant,
        constant_saved=0.11,
        linear_drift=linear,
        linear_saved=0.09,
    )


def test_the_least_drift_per_mac_goes_first_and_one_of_a_block() -> None:
    rows = [
        _alone("b00_mhsa", 0.5, 0.1),
        _alone("b00_ffn", 0.2, 0.3),
        _alone("b01_ffn", 0.3, 0.4),
        _alone("b02_mhsa", 0.9, 0.8),
        _alone("b03_mhsa", 2.0, 3.0),
    ]
    assert choose(rows, maps=True) == (["b01_ffn", "b02_mhsa"], ["b00_mhsa"])
    assert choose(rows, maps=False) == (["b00_ffn", "b01_ffn", "b02_mhsa"], [])


def test_skipped_together_their_macs_are_gone_and_maps_are_counted() -> None:
    program = tiny_program(depth=3)
    spec, pixels = program.spec, tiny_images(program.spec, 100)
    held = ImageSet(
        images=pixels[:8],
        labels=np.zeros(8, dtype=np.int64),
        names=tuple(map(str, range(8))),
        unreadable=(),
        digest="",
        source=Path("held"),
    )
    run = together("maps", program, ["b01_ffn"], ["b00_mhsa"], pixels, held)
    costs = dict(zip((b.name for b in spec.branches), macs_by_branch(spec), strict=True))
    gone = costs["b01_ffn"] + costs["b00_mhsa"] - spec.tokens * spec.dim**2
    assert run.macs == pytest.approx(1 - gone / total_macs(spec))
    assert run.drift > 0 and run.images == 8
    assert "| maps | b01_ffn | b00_mhsa |" in table("tiny", [_alone("b00_mhsa", 0.2, 0.1)], [run])
