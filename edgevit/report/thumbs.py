"""Small pictures of the easiest and the hardest images of a measurement, as data in the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevit.report import text as say
from edgevit.report.cards import Thumb, Thumbs
from edgevit.schema.measurement import Measurement

SHOWN, SIDE, QUALITY = 6, 96, 80


def thumbs(images: NDArray[np.uint8], measured: Measurement) -> tuple[Thumbs, ...]:
    """Return the images that ran fewest and most branches, or kept fewest and most tokens; none where all did alike.

    Args:
        images: uint8 RGB `[n, height, width, 3]`.
        measured: tells what ran for each of them.
    """
    costs, captions = _costs(measured)
    order = np.argsort(costs, kind="stable")
    few = min(SHOWN, len(order) // 2)
    if not few or costs.min() == costs.max():
        return ()
    chosen = (("Easiest images", order[:few]), ("Hardest images", order[::-1][:few]))
    return tuple(
        Thumbs(title=title, pictures=tuple(Thumb(uri=_uri(images[i]), caption=captions[i]) for i in which))
        for title, which in chosen
    )


def _costs(measured: Measurement) -> tuple[NDArray[np.int64], list[str]]:
    """Return what orders the images, `[n]`, and what is said of each."""
    if len(set(measured.tokens)) > 1:
        return np.array([sum(row) for row in measured.tokens]), [f"{say.tokens(row)} tokens" for row in measured.tokens]
    counts = [row.count("1") for row in measured.gates]
    return np.array(counts), [f"{count} of {len(measured.branches)} branches" for count in counts]


def _uri(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
