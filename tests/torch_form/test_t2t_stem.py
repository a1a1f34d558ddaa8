"""The soft split of T2T-ViT's stem, and its linear attention against the sum that it stands for."""

from __future__ import annotations

import numpy as np
import torch

from edgevit.torch_form.t2t_stem import performer_attention, soft_split

torch.set_num_threads(1)


def test_soft_split_is_unfold_by_row_and_column() -> None:
    x = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    tokens = soft_split(x, kernel=3, stride=2, padding=1)
    assert tokens.shape == (2, 4 * 6, 27)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    window = padded[1, :, 2:5, 4:7]  # the window in row 1, column 2
    assert torch.equal(tokens[1, 6 + 2], window.permute(1, 2, 0).reshape(-1))


def test_linear_attention_is_the_mean_of_values_weighed_by_features() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (0.5 * rng.standard_normal((2, 5, 6)) for _ in range(3))
    w = rng.standard_normal((3, 6))
    got = performer_attention(*(torch.from_numpy(a) for a in (q, k, v, w))).numpy()
    qp, kp = (np.exp(x @ w.T - (x**2).sum(-1, keepdims=True) / 2) for x in (q, k))
    weights = qp @ kp.transpose(0, 2, 1)
    np.testing.assert_allclose(got, weights / weights.sum(-1, keepdims=True) @ v, atol=1e-6)
