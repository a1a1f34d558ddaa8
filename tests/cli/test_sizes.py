from __future__ import annotations

import click
import pytest

from edgevit.cli.sizes import IMAGE_SIZE


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), ("192,432", (192, 432)), ("192x432", (192, 432)), (" 96 , 64 ", (96, 64))]
)
def test_height_comes_first(text: str, size: tuple[int, int]) -> None:
    assert IMAGE_SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "224,", "1,2,3", "-4", "4.5", "big", "224,0", "٣"])
def test_anything_else_is_told(text: str) -> None:
    with pytest.raises(click.BadParameter, match="give height and width such as 192,432"):
        IMAGE_SIZE.convert(text, None, None)
