"""Merging against a plain loop over tokens, and what it means: a merged token counts as the patches behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.program.spec import MergeSpec
from edgevit.torch_form.tokens import key_bias, match, merge, weighed
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program, tiny_spec

torch.set_num_threads(1)


def by_hand(x: np.ndarray, sizes: np.ndarray, count: int, prefix: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge one image's rows `[N, D]` with sizes `[N]` token by token, as the paper tells it."""
    alike = x[prefix:] - x[prefix:].mean(axis=1, keepdims=True)
    alike = alike / np.sqrt((alike**2).mean(axis=1, keepdims=True) + 1e-6)
    first, second = range(0, len(alike), 2), range(1, len(alike), 2)
    pairs = []
    for a in first:
        scores = [float(alike[a] @ alike[b]) for b in second]
        best = int(np.argmax(scores))  # the first of equals
        pairs.append((-scores[best], a, second[best]))
    chosen = sorted(pairs)[:count]
    rows = {i: x[prefix + i] * sizes[prefix + i] for i in range(len(alike))}
    held = {i: float(sizes[prefix + i]) for i in range(len(alike))}
    for _, a, b in chosen:
        rows[b], held[b] = rows[b] + rows.pop(a), held[b] + held.pop(a)
    order = [i for i in (*first, *second) if i in rows]
    merged = np.stack([rows[i] / held[i] for i in order])
    return np.concatenate([x[:prefix], merged]), np.concatenate([sizes[:prefix], [held[i] for i in order]])


@pytest.mark.parametrize(("prefix", "image", "count"), [(1, (32, 32), 5), (0, (24, 40), 7), (2, (32, 32), 8)])
def test_a_merge_is_the_papers(prefix: int, image: tuple[int, int], count: int) -> None:
    spec = tiny_spec(prefix=prefix, image=image)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, spec.tokens, spec.dim)).astype(np.float32)
    sizes = np.ones((3, spec.tokens), dtype=np.float32)
    sizes[:, prefix:] = rng.integers(1, 5, (3, spec.patches))
    point = MergeSpec(after="b00_mhsa", count=count)
    got, got_sizes = merge(torch.from_numpy(x), torch.from_numpy(sizes)[..., None], point, spec)
    for index in range(3):
        rows, held = by_hand(x[index], sizes[index], count, prefix)
        np.testing.assert_allclose(got[index].numpy(), rows, atol=1e-5)
        np.testing.assert_allclose(got_sizes[index, :, 0].numpy(), held)
    assert torch.allclose(got_sizes[:, prefix:].sum(dim=1), torch.from_numpy(sizes[:, prefix:].sum(axis=1))[:, None])


def test_among_equals_the_lower_index_goes_first() -> None:
    merged, left, into = match(torch.ones(1, 9, 4), 3)
    assert merged.tolist() == [[0, 1, 2]] and left.tolist() == [[3, 4]] and into.tolist() == [[0, 0, 0]]


def test_merging_equal_tokens_changes_nothing() -> None:
    """Attention counts every patch, whether its twin was merged into it or not; so does the mean over patches."""
    for options in ({"prefix": 1}, {"prefix": 0}):
        dense, merged = (tiny_program(depth=3, tokens=plan, **options) for plan in ("", "1:5"))
        model, spec = Vit(merged), merged.spec
        with torch.no_grad():
            x = Vit(dense).stem(normalise(spec, tiny_images(spec, 2)))
            x[:, spec.stem.prefix :] = x[:, spec.stem.prefix : spec.stem.prefix + 1]
            rows, sizes = model.walk(x)
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
