"""The image size on the command line: `H,W`, or one number for a square."""

from __future__ import annotations

import re
from typing import Any

import click


class ImageSize(click.ParamType):  # type: ignore[type-arg]
    """Height and width in pixels."""

    name = "H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return the pair that `224`, `192,432` or `192x432` means."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*(\d{1,5})\s*(?:[,x]\s*(\d{1,5})\s*)?", str(value), re.ASCII)
        height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if height < 1 or width < 1:
            self.fail(f"{value!r} is no image size; give height and width such as 192,432, or one number", param, ctx)
        return height, width


IMAGE_SIZE = ImageSize()
