from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevit.errors import WeightsError
from edgevit.frontends.grid import grid_of, say_grid, smoother_grid


def smooth(rows: int, columns: int) -> torch.Tensor:
    """A table as trained ones are: slow waves over the image."""
    r, c = torch.meshgrid(torch.arange(rows) / 5, torch.arange(columns) / 5, indexing="ij")
    waves = [torch.sin(r * k + c * m) for k in range(4) for m in range(4)]
    return torch.stack(waves, dim=-1).reshape(rows * columns, -1)


@pytest.mark.parametrize(
    ("rows", "asked", "grid"),
    [
        (196, None, (14, 14)),  # the default's
        (576, None, (24, 24)),  # a square
        (324, None, (18, 18)),
        (324, (192, 432), (12, 27)),  # as asked
        (196, (112, 448), (7, 28)),
        (196, (384, 384), (14, 14)),  # to be resampled
    ],
)
def test_the_grid_is_the_one_asked_for_the_default_or_a_square(
    rows: int, asked: tuple[int, int] | None, grid: tuple[int, int]
) -> None:
    assert grid_of(rows, 16, default=(224, 224), asked=asked, what="x") == grid


@pytest.mark.parametrize("rows", [0, -1, -200])
def test_no_rows_are_no_grid(rows: int) -> None:
    """A position embedding shorter than the model's prefix tokens."""
    with pytest.raises(WeightsError, match=f"has {rows} rows"):
        grid_of(rows, 16, default=(224, 224), asked=None, what="x")


def test_a_number_that_is_no_square_is_asked_for() -> None:
    with pytest.raises(WeightsError, match=r"60 rows.*--image-size H,W, such as 96,160"):
        grid_of(60, 16, default=(224, 224), asked=None, what="x")
    assert grid_of(60, 16, default=(96, 160), asked=None, what="x") == (6, 10)


@given(rows=st.integers(4, 20), columns=st.integers(4, 20))
def test_a_smooth_table_is_never_doubted_in_its_own_grid(rows: int, columns: int) -> None:
    assert smoother_grid(smooth(rows, columns), (rows, columns)) is None


def test_a_table_read_in_another_grid_is_doubted_and_noise_is_not() -> None:
    assert smoother_grid(smooth(12, 27), (18, 18)) == (12, 27)
    assert smoother_grid(smooth(7, 28), (14, 14)) == (7, 28)
    assert smoother_grid(torch.randn(196, 32, generator=torch.Generator().manual_seed(0)), (14, 14)) is None


def test_only_what_differs_from_the_model_is_said() -> None:
    def said(grid: tuple[int, int], asked: tuple[int, int] | None) -> str:
        lines: list[str] = []
        say_grid(grid, smooth(*grid), 16, default=(224, 224), asked=asked, say=lines.append)
        return "; ".join(lines)

    assert said((14, 14), None) == "" and said((14, 14), (224, 224)) == ""
    assert "taken as 288x288" in said((18, 18), None) and "--image-size" in said((18, 18), None)
    assert "resampled from 14 x 14 to 4 x 6" in said((14, 14), (64, 96))
    assert "read as 12 x 27" in said((12, 27), (192, 432))
