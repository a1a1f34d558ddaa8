from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.prune.observe import collect
from edgevit.compress.prune.plan import BranchPlan, PrunePlan
from edgevit.compress.prune.refit import held_out, refit
from edgevit.compress.prune.shrink import shrink
from edgevit.program.program import Program
from edgevit.program.tokens import read_plan, with_merges
from edgevit.torch_form import tokens
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


@torch.no_grad()
def _last_prefix_rows(program: Program, images: np.ndarray) -> torch.Tensor:
    model = Vit(program)
    return torch.cat(
        [model.blocks(model.stem(b))[:, : program.spec.stem.prefix] for b in batches(program.spec, images)]
    )


def _merged(program: Program, plan: str) -> Program:
    return program.with_weights({}, with_merges(program.spec, read_plan(plan, program.spec)))


@pytest.mark.parametrize("plan", ["1:4,2:3", "1:1-6@0.1,3:0-2@0.0"])
def test_what_merging_changed_is_fitted_back_on_images_that_no_fit_saw(plan: str) -> None:
    dense = tiny_program(depth=4)
    reduced, images, fresh = _merged(dense, plan), tiny_images(dense.spec, 160), tiny_images(dense.spec, 64, seed=9)
    repaired = refit(reduced, dense, images)
    assert repaired.spec == reduced.spec
    target = _last_prefix_rows(dense, fresh)
    before, after = ((_last_prefix_rows(p, fresh) - target).square().mean() for p in (reduced, repaired))
    assert after < 0.9 * before
    # What lies before the first point is not touched.
    assert np.array_equal(repaired.weights["b00_mhsa.proj.weight"], dense.weights["b00_mhsa.proj.weight"])
    assert not np.array_equal(repaired.weights["b00_ffn.fc2.weight"], dense.weights["b00_ffn.fc2.weight"])


def test_skip_rows_behind_a_merge_are_the_mean_of_what_is_missing() -> None:
    dense = tiny_program(depth=3)
    images = tiny_images(dense.spec, 20)
    branches = tuple(
        BranchPlan(name=b.name, kept=() if b.name == "b01_ffn" else b.kept, loss=0.0) for b in dense.spec.branches
    )
    pruned = shrink(dense, PrunePlan(branches=branches, macs=0, budget_macs=0), collect(dense, images))
    repaired = refit(_merged(pruned, "1:4"), dense, images)
    seen: list[torch.Tensor] = []

    def watch(model: Vit, stop: str) -> None:
        names = [b.name for b in model.spec.branches]
        with torch.no_grad():
            for batch in batches(model.spec, images):
                model(batch, watch=lambda i, x: seen.append(x) if names[i] == stop else None)

    watch(Vit(dense), "b02_mhsa")
    watch(Vit(repaired), "b02_mhsa")
    half = len(seen) // 2
    target, got = (torch.cat([x[:, : dense.spec.stem.prefix] for x in part]) for part in (seen[:half], seen[half:]))
    assert torch.allclose(target.mean(dim=0), got.mean(dim=0), atol=1e-4)


def test_columns_beyond_the_stream_travel_with_the_rows() -> None:
    dense = _merged(tiny_program(depth=3), "1:4")
    model, point = Vit(dense), dense.spec.merges[0]
    with torch.no_grad():
        x = model.stem(batches(dense.spec, tiny_images(dense.spec, 3))[0])
        plain, sizes = tokens.merge(x, None, point, dense.spec)
        means = torch.eye(x.shape[1]).expand(len(x), -1, -1)
        both, same = tokens.merge(torch.cat([x, means], dim=2), None, point, dense.spec)
    assert sizes is not None and same is not None and torch.equal(sizes, same)
    assert torch.equal(both[..., : dense.spec.dim], plain)
    assert torch.allclose(both[..., dense.spec.dim :] @ x, plain, atol=1e-5)
    assert torch.allclose(both[..., dense.spec.dim :].sum(dim=2), torch.ones(plain.shape[:2]))


def test_every_fifth_batch_is_held_out() -> None:
    images = np.arange(200)
    assert held_out(images).tolist() == [*range(64, 80), *range(144, 160)]
    assert held_out(np.arange(64)).size == 0


@torch.no_grad()
def test_each_path_of_a_gate_is_fitted_to_the_images_that_take_it() -> None:
    """A gate that opens for half of the images: skip rows get the mean of the others, and what follows is repaired."""
    dense = tiny_program(depth=2)
    gated, images = attach_gates(dense), tiny_images(dense.spec, 160)
    weight, model, watched = np.linspace(-1, 1, dense.spec.dim, dtype=np.float32), Vit(dense), list[torch.Tensor]()
    for batch in batches(dense.spec, images):
        model(batch, watch=lambda i, x: watched.append(x) if i == 1 else None)
    stream = torch.cat(watched)
    pooled = torch.nn.functional.layer_norm(stream[:, 0], (dense.spec.dim,), eps=dense.spec.norm_eps)
    said = pooled @ torch.from_numpy(weight)
    biases = {f"{b.name}.gate.bias": np.ones(1, np.float32) for b in gated.spec.branches}
    biases["b00_ffn.gate.bias"] = -np.array([float(said.median())], np.float32)
    gated = gated.with_weights({**biases, "b00_ffn.gate.weight": weight})
    repaired = refit(gated, dense, images)
    closed = said + float(biases["b00_ffn.gate.bias"][0]) <= 0
    assert 60 < int(closed.sum()) < 100
    missing = model.branch(dense.spec.branches[1], stream[closed])[:, : dense.spec.stem.prefix].mean(dim=0)
    assert np.allclose(repaired.weights["b00_ffn.skip"][:-1], missing.numpy(), atol=1e-4)
    assert np.array_equal(repaired.weights["b00_ffn.fc2.weight"], dense.weights["b00_ffn.fc2.weight"])
    assert not np.array_equal(repaired.weights["b01_ffn.fc2.weight"], dense.weights["b01_ffn.fc2.weight"])
