from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgevit.frontends.t2t import t2t_program
from edgevit.program.macs import (
    branch_macs,
    gate_macs,
    head_macs,
    macs_by_branch,
    rows_in,
    rows_out,
    run_macs,
    stem_macs,
    total_macs,
)
from edgevit.program.spec import ProgramSpec
from edgevit.program.tokens import fewest_left, most_left, read_plan, with_merges
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program, tiny_spec

torch.set_num_threads(1)

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"prefix": 2, "head_prefix": 2, "image": (24, 40)},
    {"prefix": 0, "depth": 1},
    {"prefix": 5, "pool": "mean", "heads": 4, "hidden": 48},
    {"removed": ("b00_mhsa", "b01_ffn")},
    {"removed": ("b01_mhsa",)},
    {"removed": ("b00_mhsa", "b01_mhsa", "b02_mhsa"), "depth": 3},
    {"gated": True},
    {"gated": True, "gate_pool": "mean"},
)
MERGED: tuple[dict[str, Any], ...] = (
    {"depth": 3, "tokens": "1:4,2:3"},
    {"depth": 3, "prefix": 0, "tokens": "2:8"},
    {"depth": 4, "prefix": 2, "pool": "mean", "tokens": "1:5,2:4,4:2"},
)


def counted(model: torch.nn.Module, images: torch.Tensor) -> int:
    """MACs of matrix products as torch counts them while the model runs."""
    counter = FlopCounterMode(display=False)
    # Plain products: the counter does not know the CPU's fused attention.
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        model(images)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("options", [v for v in (*VARIANTS, *MERGED) if "gated" not in v])
def test_full_rows_is_what_torch_counts(options: dict[str, Any]) -> None:
    program = tiny_program(**options)
    images = normalise(program.spec, tiny_images(program.spec, 1))
    assert total_macs(program.spec, full_rows=True) == counted(Vit(program), images)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_t2t_is_what_torch_counts(name: str) -> None:
    program = t2t_program(name, image_size=(64, 96))
    images = torch.randn(1, 3, 64, 96)
    assert total_macs(program.spec, full_rows=True) == pytest.approx(counted(Vit(program), images), rel=0.002)


@pytest.mark.parametrize("options", VARIANTS)
def test_rows_that_are_not_handed_on_are_dead(options: dict[str, Any]) -> None:
    """Changing a dropped row changes nothing; changing any row that is handed on does.

    But for mean pooling, where the prefix tokens of the last rows are dead too and are computed all the same.
    """
    program = tiny_program(**options)
    spec, model = program.spec, Vit(program)
    with torch.no_grad():
        start = model.stem(normalise(spec, tiny_images(spec, 1)))
        for index, rows in enumerate(rows_out(spec)):
            x = walk(model, start, range(index + 1))
            expected = finish(model, x, index + 1)
            for row in range(spec.tokens):
                changed = x.clone()
                changed[:, row] += 1.0 + torch.arange(spec.dim) % 3
                same = all(torch.equal(a, b) for a, b in zip(expected, finish(model, changed, index + 1), strict=True))
                if row >= rows or spec.head.pool == "prefix":
                    assert same == (row >= rows), (spec.branches[index].name, row)


def walk(model: Vit, x: torch.Tensor, indices: range) -> torch.Tensor:
    for index in indices:
        branch = model.spec.branches[index]
        x = x + (model.skip_rows(branch) if branch.removed else model.branch(branch, x))
    return x


def finish(model: Vit, x: torch.Tensor, start: int) -> list[torch.Tensor]:
    """Logits and the logits of all gates after `start`."""
    logits = []
    for index in range(start, len(model.spec.branches)):
        if model.spec.branches[index].gate is not None:
            logits.append(model.gate_logit(model.spec.branches[index], x))
        x = walk(model, x, range(index, index + 1))
    return [*logits, model.head(x)]


def test_every_later_branch_costs_less_where_tokens_merge() -> None:
    dense, merged = tiny_program(depth=3).spec, tiny_program(depth=3, tokens="1:4,2:3").spec
    assert rows_in(merged) == (17, 13, 13, 10, 10, 1)
    assert rows_out(merged) == (17, 13, 13, 10, 1, 1)
    costs = list(zip(macs_by_branch(merged), macs_by_branch(dense), strict=True))
    assert costs[0][0] == costs[0][1] and costs[5][0] == costs[5][1]  # before the first point; the head's one token
    assert all(fewer < all_tokens for fewer, all_tokens in costs[1:5])
    parts = stem_macs(merged) + sum(macs_by_branch(merged)) + head_macs(merged)
    assert total_macs(merged) == parts + 32 * 8 * (8 + 4) + 32 * 6 * (6 + 3)


def test_fewer_tokens_are_fewer_macs() -> None:
    """Of a run that tells how many tokens it had; at the most tokens it is what is said of the Program."""
    spec = tiny_program(depth=4, gated=True, tokens="1:0-6@0.1,2:1-3@0.1").spec
    opened = np.array([1] * 8, dtype=np.uint8)
    assert run_macs(spec, opened, most_left(spec)) == total_macs(spec) == run_macs(spec, opened)
    left = np.array([12, 10], dtype=np.int32)
    assert rows_in(spec, left) == (17, 13, 13, 11, 11, 11, 11, 1)
    fixed = tiny_program(depth=4, gated=True, tokens="1:4,2:2").spec
    assert run_macs(spec, opened, left) == total_macs(fixed) == total_macs(spec, left=left)
    assert total_macs(spec, full_rows=True, left=left) == total_macs(fixed, full_rows=True)
    assert run_macs(spec, opened, fewest_left(spec)) < run_macs(spec, opened, left) < total_macs(spec)
    opened[3] = 0
    assert run_macs(spec, opened, left) == total_macs(fixed) - macs_by_branch(fixed)[3]


def test_macs_of_an_outputs_numbers_do_not_overflow() -> None:
    spec = tiny_spec(depth=2, dim=4096, hidden=65536, image=(512, 512))
    spec = with_merges(spec, read_plan("1:1-99@0.5", spec))
    assert total_macs(spec, left=np.array([4000], dtype=np.int32)) > 2**31


def test_parts_add_up() -> None:
    spec = tiny_program(gated=True).spec
    assert total_macs(spec) == stem_macs(spec) + sum(macs_by_branch(spec)) + head_macs(spec) + gate_macs(spec)
    assert gate_macs(spec) == 4 * 32
    assert total_macs(spec) < total_macs(spec, full_rows=True)
    assert rows_in(spec) == (17, *rows_out(spec)[:-1])


def test_a_removed_branch_costs_nothing() -> None:
    spec: ProgramSpec = tiny_program(removed=("b00_ffn",)).spec
    assert macs_by_branch(spec)[1] == 0 == branch_macs(spec, spec.branches[1], 17, 17)
