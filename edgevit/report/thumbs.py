"""Small pictures of the easiest and the hardest images of a measurement, as data in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevit.report.cards import Thumb, Thumbs

SHOWN, SIDE, QUALITY = 6, 96, 80


def thumbs(images: NDArray[np.uint8], gates: Sequence[str]) -> tuple[Thumbs, ...]:
    """Return the images that ran fewest and most branches.

    Args:
        images: uint8 RGB `[n, height, width, 3]`.
        gates: for each, a 1 or a 0 per branch.
    """
    counts = np.array([row.count("1") for row in gates])
    order = np.argsort(counts, kind="stable")
    whole, few = len(gates[0]), min(SHOWN, len(order) // 2)
    if not few or counts.min() == counts.max():
        return ()
    chosen = (("Easiest images", order[:few]), ("Hardest images", order[::-1][:few]))
    return tuple(
        Thumbs(
            title=title,
            pictures=tuple(Thumb(uri=_uri(images[i]), caption=f"{counts[i]} of {whole} branches") for i in which),
        )
        for title, which in chosen
    )


def _uri(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
