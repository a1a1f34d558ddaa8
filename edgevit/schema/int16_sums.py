"""Which products of uint8 by int8 a kernel adds in 16 bits, and how large weights may be so that no sum overflows.

On x86 without VNNI an instruction adds two products in 16 bits, and another one widens such sums to 32. Where four
products are added first, one widening serves all of them: whether that is exact is a property of the weights.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Products = Literal[2, 4]
WORD = 4  # weights of a column that lie together; each half of them is added by one instruction
# The most that weights of one sign may sum to: 255 * 128 < 2^15.
ROOM = 128


def int16_groups(depth: int, products: Products) -> np.ndarray:
    """Return the number of the sum in 16 bits that each of `depth` rows of a weight goes into, `[depth]`."""
    rows = np.arange(depth)
    half = WORD // 2
    return rows // (products * half) * 2 + rows % WORD // half


def int16_exact(weight: np.ndarray, products: Products) -> bool:
    """Return whether no input overflows a sum of so many products; int8 `[depth, columns]`."""
    groups = int16_groups(len(weight), products)
    sums = np.zeros((2, groups.max(initial=0) + 1, weight.shape[1]), dtype=np.int64)
    for sign, own in zip((1, -1), sums, strict=True):
        np.add.at(own, groups, np.maximum(sign * weight.astype(np.int64), 0))
    return bool(sums.max(initial=0) <= ROOM)
