"""What keeps tokens that matter from being merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from edgevit.compress.tokens.guard import GUARD, attention_to_patches, guards
from edgevit.program.spec import BranchSpec
from edgevit.torch_form.stream import batches, step_branch
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def test_the_row_tells_which_tokens_are_looked_at() -> None:
    program = tiny_program(depth=2, image=(64, 64))
    work = batches(program.spec, tiny_images(program.spec, 24))
    found = guards(program, work)
    assert set(found) == {"b00_mhsa", "b01_mhsa"} and all(row.shape == (program.spec.dim,) for row in found.values())
    model = Vit(program).eval()
    with torch.no_grad():
        x = model.stem(work[0])
        first = attention_to_patches(model, program.spec.branches[0], x)
        x = step_branch(model, program.spec.branches[0], x)
        second = attention_to_patches(model, program.spec.branches[2], step_branch(model, program.spec.branches[1], x))
        patches = x[:, program.spec.stem.prefix :]
        wanted = first + second + patches.square().sum(dim=-1).log()
        rows = F.layer_norm(patches, (program.spec.dim,), eps=program.spec.norm_eps)
        told = rows @ found["b00_mhsa"] / (GUARD * program.spec.dim)
    assert torch.corrcoef(torch.stack([told.flatten(), wanted.flatten()]))[0, 1] > 0.7


def test_attention_is_of_all_tokens_where_the_head_averages_them() -> None:
    program = tiny_program(depth=1, prefix=0)
    model, branch = Vit(program).eval(), program.spec.branches[0]
    with torch.no_grad():
        x = model.stem(batches(program.spec, tiny_images(program.spec, 2))[0])
        given = attention_to_patches(model, branch, x).exp()
    assert given.shape == (2, program.spec.patches)
    assert given.mean().item() == pytest.approx(1.0, abs=1e-3)


def test_without_attention_there_is_nothing_to_guard() -> None:
    program = tiny_program(depth=1)
    gone: tuple[BranchSpec, ...] = tuple(replace(b, kept=()) if b.kind == "mhsa" else b for b in program.spec.branches)
    pruned = program.with_weights({}, replace(program.spec, branches=gone))
    assert guards(pruned, batches(program.spec, tiny_images(program.spec, 2))) == {}
