"""Merging against a plain loop over tokens, and what it means: a merged token counts as the patches behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.frontends.t2t import t2t_program
from edgevit.program.macs import rows_out
from edgevit.program.program import Program
from edgevit.program.spec import MergeSpec
from edgevit.program.tokens import (
    MERGE_EFFORT,
    fewest_left,
    most_left,
    pair_counts,
    read_plan,
    tokens_before,
    with_merges,
)
from edgevit.torch_form.tokens import (
    chosen,
    key_bias,
    match,
    merge,
    merge_traced,
    pairs,
    patches_left,
    unmerged,
    weighed,
)
from edgevit.torch_form.vit import Answer, Vit, normalise
from tests.tiny import tiny_images, tiny_program, tiny_spec

torch.set_num_threads(1)


def by_hand(
    x: np.ndarray, sizes: np.ndarray, point: MergeSpec, prefix: int, shift: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Merge one image's rows `[N, D]` with sizes `[N]` token by token, as the paper tells it."""
    alike = x[prefix:] - x[prefix:].mean(axis=1, keepdims=True)
    alike = alike / np.sqrt((alike**2).mean(axis=1, keepdims=True) + 1e-6)
    alike = alike if shift is None else alike - shift
    first, second = range(0, len(alike), 2), range(1, len(alike), 2)
    pairs = []
    for a in first:
        scores = [float(alike[a] @ alike[b]) for b in second]
        best = int(np.argmax(scores))  # the first of equals
        pairs.append((-scores[best], a, second[best]))
    count = point.count
    if point.threshold is not None:
        above = sum(-score / x.shape[1] > point.threshold for score, _, _ in pairs)
        count = max(k for k in (point.least, 8, 16, 24, point.count) if k <= min(max(above, point.least), point.count))
    chosen = sorted(pairs)[:count]
    rows = {i: x[prefix + i] * sizes[prefix + i] for i in range(len(alike))}
    held = {i: float(sizes[prefix + i]) for i in range(len(alike))}
    for _, a, b in chosen:
        rows[b], held[b] = rows[b] + rows.pop(a), held[b] + held.pop(a)
    order = [i for i in (*first, *second) if i in rows]
    merged = np.stack([rows[i] / held[i] for i in order])
    return np.concatenate([x[:prefix], merged]), np.concatenate([sizes[:prefix], [held[i] for i in order]])


@pytest.mark.parametrize(("prefix", "image", "count"), [(1, (64, 64), 21), (0, (40, 72), 22), (2, (64, 64), 32)])
@pytest.mark.parametrize("threshold", [None, 0.38])
@pytest.mark.parametrize("guarded", [False, True])
def test_a_merge_is_the_papers(
    prefix: int, image: tuple[int, int], count: int, threshold: float | None, guarded: bool
) -> None:
    spec = tiny_spec(prefix=prefix, image=image)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, spec.tokens, spec.dim)).astype(np.float32)
    sizes = np.ones((8, spec.tokens), dtype=np.float32)
    sizes[:, prefix:] = rng.integers(1, 5, (8, spec.patches))
    point = MergeSpec(after="b00_mhsa", count=count, least=0 if threshold is None else 1, threshold=threshold)
    shift = (0.5 * rng.standard_normal(spec.dim)).astype(np.float32) if guarded else None
    if shift is not None and threshold is not None:
        point = replace(point, threshold=threshold + float(shift @ shift) / spec.dim)
    row = None if shift is None else torch.from_numpy(shift)
    got, got_sizes = merge(torch.from_numpy(x), torch.from_numpy(sizes)[..., None], point, spec, shift=row)
    lengths = set()
    for index in range(len(x)):
        rows, held = by_hand(x[index], sizes[index], point, prefix, shift)
        lengths.add(len(held))
        np.testing.assert_allclose(got[index, : len(rows)].numpy(), rows, atol=1e-5)
        np.testing.assert_allclose(got_sizes[index, : len(rows), 0].numpy(), held)
        assert not got_sizes[index, len(rows) :].any() and torch.isfinite(got[index]).all()
    assert got.shape[1] == max(lengths)
    assert guarded or (len(lengths) > 1) == (threshold is not None)
    total = torch.from_numpy(sizes[:, prefix:].sum(axis=1))
    assert torch.allclose(got_sizes[:, prefix:].sum(dim=1), total[:, None])


def test_among_equals_the_lower_index_goes_first() -> None:
    best, into = match(torch.ones(1, 9, 4), torch.ones(1, 9, dtype=torch.bool))
    assert into.tolist() == [[0, 0, 0, 0, 0]]
    merged, valid = chosen(best.expand(2, -1), torch.tensor([3, 1]))
    assert merged.tolist() == [[0, 1, 2]] * 2 and valid.tolist() == [[True] * 3, [True, False, False]]


def test_rows_that_are_no_tokens_match_nothing() -> None:
    there = torch.tensor([[True] * 5 + [False] * 3])
    best, into = match(torch.ones(1, 8, 4), there)
    assert best.tolist() == [[4.0, 4.0, 4.0, -torch.inf]] and into[0, :3].tolist() == [0, 0, 0]
    # Better products that are not there change nothing.
    tokens = torch.randn(1, 8, 4)
    tokens[:, 5:] = 100 * tokens[:, :3]
    best, into = match(tokens, there)
    alone = match(tokens[:, :5], there[:, :5])
    assert torch.equal(best[:, :3], alone[0]) and torch.equal(into[:, :3], alone[1])


def test_effort_moves_the_threshold_between_the_fewest_and_the_most() -> None:
    spec, patches = tiny_spec(dim=4), torch.tensor([50, 50])
    point = MergeSpec(after="b00_mhsa", count=21, least=1, threshold=0.5)
    # Cosines of 0.99, 0.96, ...: 17 are above 0.5, which are 16 in steps.
    best = 4 * torch.stack([0.99 - 0.03 * torch.arange(25), torch.full((25,), 0.4)])
    efforts = (0.0, 3.0, -3.0, torch.inf, -torch.inf)
    counts = {effort: pairs(best, patches, point, spec, effort).tolist() for effort in efforts}
    assert MERGE_EFFORT == 0.1 and pair_counts(point, 51) == (1, 8, 16, 21)
    assert counts == {0.0: [16, 1], 3.0: [1, 1], -3.0: [21, 21], torch.inf: [1, 1], -torch.inf: [21, 21]}
    # All that there may be: no step.
    assert pairs(best, patches, replace(point, threshold=0.38), spec).tolist() == [21, 21]
    # Of 51 rows 48, 40 or 32 are left, of 48 (one token of the prefix) too, by numbers of their own.
    tiles, patches = replace(point, whole=True), torch.tensor([50, 47])
    assert pair_counts(tiles, 51) == (1, 3, 11, 19) and pair_counts(tiles, 48) == (1, 8, 16)
    counts = {effort: pairs(best, patches, tiles, spec, effort).tolist() for effort in efforts}
    assert counts == {0.0: [11, 1], 3.0: [3, 1], -3.0: [19, 16], torch.inf: [1, 1], -torch.inf: [19, 16]}
    fixed = MergeSpec(after="b00_mhsa", count=5)
    for effort in (torch.inf, -9.0):
        assert pairs(best, patches, fixed, spec, effort).tolist() == [5, 5]


@pytest.mark.parametrize("whole", [False, True])
def test_images_merge_the_largest_number_that_there_is(whole: bool) -> None:
    rng, spec = np.random.default_rng(0), tiny_spec(dim=4, image=(112, 112))
    for _ in range(200):
        patches, step = int(rng.integers(20, 197)), int(rng.integers(8, 30))
        first = (patches + 1) // 2
        count = int(rng.integers(1, first + 10))
        least = int(rng.integers(0, min(count, first)))
        point = MergeSpec(after="b00_mhsa", count=count, least=least, threshold=0.0, step=step, whole=whole)
        above = rng.integers(0, first + 1, 6)
        best = torch.from_numpy(np.where(np.arange(first) < above[:, None], 1.0, -1.0))
        got = pairs(best, torch.full((6,), patches), point, spec).tolist()
        allowed = pair_counts(point, 1 + patches)
        assert got == [max([least, *(n for n in allowed if n <= found)]) for found in above]
        if whole:
            assert all((1 + patches - n) % step == 0 for n in got if n > least)


ADAPTIVE: tuple[dict[str, Any], ...] = (
    {"tokens": "1:0-27@0.85,2:3-17@0.8,3:1"},
    {"tokens": "1:0-32@0.85,2:0-32@0.83,3:0-32@0.85"},
    {"tokens": "1:2-32@0.85,3:0-13@0.85", "gated": True, "gate_pool": "mean", "prefix": 0, "skip": True},
    {"tokens": "1:0-24@0.85,2:9", "stepped": True, "gated": True, "gate_pool": "mean", "prefix": 2, "head_prefix": 2},
    {"tokens": "1:0-32@0.86,2:0-16@0.8", "prefix": 3, "pool": "mean", "skip": True, "removed": ("b01_ffn", "b02_mhsa")},
)


def adaptive_t2t() -> Program:
    program = t2t_program("t2t_vit_7", image_size=(64, 96))
    spec = with_merges(program.spec, read_plan("2:0-12@0.88,4:1-5@0.9", program.spec))
    return program.with_weights({}, spec)


def made(options: dict[str, Any] | None) -> Program:
    return adaptive_t2t() if options is None else tiny_program(depth=4, image=(64, 64), **options)


@pytest.mark.parametrize("options", [*ADAPTIVE, None])
def test_a_batch_of_images_is_its_images_one_by_one(options: dict[str, Any] | None) -> None:
    program = made(options)
    spec, model = program.spec, Vit(program)
    images = normalise(spec, tiny_images(spec, 10))
    different = 0
    for effort in (0.0, 0.5, torch.inf, -torch.inf):
        with torch.no_grad():
            together = model.answer(images, effort)
            alone = Answer(*map(torch.cat, zip(*(model.answer(i[None], effort) for i in images), strict=True)))
        assert torch.equal(together.tokens, alone.tokens) and torch.equal(together.gates, alone.gates)
        np.testing.assert_allclose(together.logits.numpy(), alone.logits.numpy(), atol=2e-5)
        assert together.tokens.dtype == torch.int32
        different = max(different, len({tuple(row) for row in together.tokens.tolist()}))
        limits = {torch.inf: most_left(spec), -torch.inf: fewest_left(spec)}
        if effort in limits:
            assert {tuple(row) for row in together.tokens.tolist()} == {limits[effort]}
    assert different > 2


@pytest.mark.parametrize("options", [*ADAPTIVE, None])
def test_rows_that_nothing_reads_change_nothing(options: dict[str, Any] | None) -> None:
    program = made(options)
    spec, model = program.spec, Vit(program)
    with torch.no_grad():
        images = normalise(spec, tiny_images(spec, 4))
        whole, trimmed = (model(images, trim=trim) for trim in (False, True))
        np.testing.assert_allclose(whole.numpy(), trimmed.numpy(), atol=2e-5)
        for image in images:
            walked = model.walk(model.stem(image[None]), trim=True)
            left = walked.tokens[0].tolist()
            assert walked.x.shape[1] == rows_out(spec, left)[-1]
            assert walked.sizes is not None
            assert walked.sizes.shape[1] == tokens_before(spec, left)[-1]
            assert patches_left(walked.sizes, spec.stem.prefix).tolist() == [left[-1]]


def test_the_answer_tells_gates_and_tokens() -> None:
    program = tiny_program(depth=3, gated=True, tokens="1:0-8@0.75", removed=("b01_ffn",))
    model, images = Vit(program), normalise(program.spec, tiny_images(program.spec, 6))
    with torch.no_grad():
        opened, closed = model.answer(images, torch.inf), model.answer(images, -torch.inf)
        assert opened.gates.sum() == 6 * 5 and not closed.gates.any() and not opened.gates[:, 3].any()
        assert torch.equal(opened.logits, model(images, trim=True, effort=torch.inf))
    dense = Vit(tiny_program()).answer(images[:2])
    assert dense.tokens.shape == (2, 0) and dense.gates.all()


def test_an_adaptive_program_trains_with_rows_that_are_no_tokens() -> None:
    program = tiny_program(depth=4, tokens="1:0-7@0.75,2:1-4@0.7")
    model, images = Vit(program), normalise(program.spec, tiny_images(program.spec, 6))
    logits = model(images)
    logits.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    gradient = model.array("stem.weight").grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_merging_equal_tokens_changes_nothing() -> None:
    """Attention counts every patch, whether its twin was merged into it or not; so does the mean over patches."""
    for options in ({"prefix": 1}, {"prefix": 0}):
        dense, merged = (tiny_program(depth=3, tokens=plan, **options) for plan in ("", "1:5"))
        model, spec = Vit(merged), merged.spec
        with torch.no_grad():
            x = Vit(dense).stem(normalise(spec, tiny_images(spec, 2)))
            x[:, spec.stem.prefix :] = x[:, spec.stem.prefix : spec.stem.prefix + 1]
            rows, sizes, _ = model.walk(x)
            expected = Vit(dense).head(Vit(dense).blocks(x))
            np.testing.assert_allclose(model.head(rows, None, sizes).numpy(), expected.numpy(), atol=1e-5)
        assert rows.shape[1] == spec.tokens - 5


def test_sizes_are_weights_of_keys_and_means() -> None:
    sizes = torch.tensor([[[1.0], [3.0], [1.0]]])
    bias = key_bias(sizes)
    assert bias is not None and bias.shape == (1, 1, 1, 3) and torch.allclose(bias.exp()[0, 0], sizes[:, :, 0])
    x = torch.tensor([[[5.0], [1.0], [2.0]]])
    assert weighed(x, sizes, 1)[:, 1:].mean().item() == pytest.approx((3 * 1 + 2) / 4)
    assert weighed(x, sizes, 1)[0, 0].item() == 5.0
    assert weighed(x, None, 1) is x and key_bias(None) is None


def test_a_merged_program_trains() -> None:
    program = tiny_program(depth=3, tokens="1:4,2:3")
    model = Vit(program)
    model(normalise(program.spec, tiny_images(program.spec, 2))).square().sum().backward()
    gradient = model.array("stem.weight").grad
    assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("threshold", [None, 0.38])
def test_every_patch_knows_the_token_it_went_to(threshold: float | None) -> None:
    """Through two points: a token's size is how many patches name it, and its row their mean."""
    spec = tiny_spec(image=(64, 64))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 65, 32)).astype(np.float32))
    point = MergeSpec(after="b00_mhsa", count=20, threshold=threshold)
    one = merge_traced(x, None, point, spec)
    two = merge_traced(one.x, one.sizes, replace(point, count=11), spec)
    went = two.went.gather(1, one.went)
    assert went.shape == (3, 64)
    for image in range(3):
        named = torch.bincount(went[image], minlength=two.x.shape[1] - 1)
        assert named.tolist() == two.sizes[image, 1:, 0].tolist()
        for token in named.nonzero()[:, 0].tolist():
            mean = x[image, 1:][went[image] == token].mean(dim=0)
            torch.testing.assert_close(two.x[image, 1 + token], mean, rtol=1e-4, atol=1e-5)
    spread = unmerged(two.x, went, 1)
    assert spread.shape == x.shape
    torch.testing.assert_close(spread.mean(dim=1), x.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_smaller_images_merge_as_large_a_part_and_are_counted_as_whole_ones() -> None:
    program = tiny_program(depth=3, image=(64, 64), tokens="1:20,2:12")
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
    found: list[torch.Tensor] = []
    seen: dict[int, tuple[int, ...]] = {}
    Vit(program)(images, watch=lambda i, x: seen.setdefault(i, tuple(x.shape)), count=found.append, trim=True)
    assert found[0].tolist() == [[44.0, 32.0]] * 2
    assert {seen[i] for i in range(5)} == {(2, 17, 32)}  # a row for every patch again
    assert seen[5] == (2, 1, 32)  # but for what nothing reads any more


def test_derivatives_reach_every_patch_of_a_merged_token() -> None:
    spec = tiny_spec(image=(64, 64))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 65, 32)).astype(np.float32)).requires_grad_(True)
    merged = merge_traced(x, None, MergeSpec(after="b00_mhsa", count=20), spec)
    torch.autograd.backward(merged.x[:, 1:].mul(merged.sizes[:, 1:]).sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad[:, 1:], torch.ones(1, 64, 32))
