from __future__ import annotations

import numpy as np
import pytest

from edgevit.schema.int16_sums import ROOM, Products, int16_exact, int16_groups


def test_halves_of_a_word_go_into_sums_of_their_own() -> None:
    assert int16_groups(12, 2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert int16_groups(12, 4).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]


def test_there_is_no_room_for_one_more() -> None:
    assert 255 * ROOM < 2**15 <= 255 * (ROOM + 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("products", "rows"), [(2, (0, 1)), (4, (0, 1, 4, 5))])
def test_weights_of_one_sign_count_together(products: Products, rows: tuple[int, ...], sign: int) -> None:
    weight = np.zeros((8, 3), dtype=np.int8)
    weight[list(rows), 1] = sign * ROOM // len(rows)
    weight[2, 1], weight[3, 1] = 100, -100
    assert int16_exact(weight, products)
    weight[rows[0], 1] += sign
    assert not int16_exact(weight, products)
    weight[rows[1], 1] *= -1
    assert int16_exact(weight, products)


def test_any_seven_bits_fit_in_pairs() -> None:
    assert int16_exact(np.full((9, 2), 63, dtype=np.int8), 2)
    assert not int16_exact(np.full((9, 2), 63, dtype=np.int8), 4)
    assert int16_exact(np.zeros((0, 2), dtype=np.int8), 4)
