"""Let a plan of merges follow the image: thresholds with which it costs on average what was asked for.

At every point the threshold is the one that merges as many pairs on average, over the calibration images, as the fixed
plan does times one factor; the factor is found by bisection. An image merges up to half of its tokens at a point, and
none where none are alike: what one image saves another may spend, and the closer numbers are held to the fixed ones,
the less of the drift goes away (reports/reference/token-freedom.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.tokens.reserve import Reserve, opened
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import MergeSpec, ProgramSpec, shift_name
from edgevit.torch_form import tokens
from edgevit.torch_form.stream import step_branch
from edgevit.torch_form.vit import Vit

MOST_FACTOR = 1.5
PASSES = 6
TOLERANCE = 0.002  # of the MACs, below the budget
HALVINGS = 40
Stream = tuple[Tensor, tokens.Sizes]


@torch.no_grad()
def follow_images(
    program: Program,
    work: Sequence[Tensor],
    budget_macs: float,
    reserve: Reserve | None = None,
    *,
    most: float = np.inf,
) -> ProgramSpec | None:
    """Return the spec of a Program with a fixed plan, its points with thresholds, for mean MACs within the budget.

    Args:
        program: its merges have no thresholds; no gates.
        work: batches of calibration images from `stream.batches`.
        budget_macs: mean MACs of an image.
        reserve: goes in front; it costs MACs, and hands tokens on in another order where it merges none.
        most: times its number in the fixed plan that an image may merge at a point, if that is below half.

    Returns:
        None where no thresholds were found: the points merge half of all tokens already.
    """
    model, spec = Vit(program).eval(), program.spec
    free, lead = opened(spec, most), () if reserve is None else (reserve.point,)
    begun = _begin(model, work, reserve)
    whole = total_macs(replace(spec, merges=()))
    low, high, found, factor = 0.0, MOST_FACTOR, None, 1.0
    before = (0.0, 0.0)  # the factor tried last, and the MACs that it saved
    for _ in range(PASSES):
        tried, left = _thresholds(model, free, [p.count for p in spec.merges], factor, begun)
        tried = replace(tried, merges=(*lead, *tried.merges))
        mean = float(np.mean([total_macs(tried, left=[*[spec.patches] * len(lead), *row]) for row in left]))
        if mean <= budget_macs:
            found, high = tried, factor
            if mean > budget_macs - TOLERANCE * whole:
                break
        else:
            low = factor
        # Where points merge half already, a pair more asked for saves less than those before: so along the secant.
        tried_last, saved = (factor, whole - mean), whole - mean - before[1]
        wanted = mean - budget_macs + TOLERANCE / 2 * whole
        factor += wanted * (factor - before[0]) / saved if saved else np.inf
        before = tried_last
        if not low < factor < high:
            factor = (low + high) / 2
    return found


def _begin(model: Vit, work: Sequence[Tensor], reserve: Reserve | None) -> list[Stream]:
    """Return the streams of batches where the first point of a plan takes them."""
    first, streams = _place(model.spec, model.spec.merges[0]), list[Stream]()
    for batch in work:
        stream: Stream = (model.stem(batch), None)
        place = 0
        if reserve is not None:
            place = _place(model.spec, reserve.point)
            x, sizes = _advance(model, stream, 0, place)
            shift = torch.from_numpy(reserve.shifts[shift_name(reserve.point)]) if reserve.point.shift else None
            stream = tokens.merge(x, sizes, reserve.point, model.spec, 0.0, shift)
        streams.append(_advance(model, stream, place, first))
    return streams


def _thresholds(
    model: Vit, spec: ProgramSpec, counts: Sequence[int], factor: float, begun: list[Stream]
) -> tuple[ProgramSpec, np.ndarray]:
    """Return the spec with thresholds that merge `factor` times `counts` on average, and tokens left `[n, points]`."""
    streams, merges, left = begun, list[MergeSpec](), []
    place = _place(spec, spec.merges[0])
    for point, count in zip(spec.merges, counts, strict=True):
        streams = [_advance(model, stream, place, _place(spec, point)) for stream in streams]
        place = _place(spec, point)
        shift = model.array(shift_name(point)) if point.shift else None
        best = [tokens.likeness(x, sizes, spec, shift) for x, sizes in streams]
        there = torch.cat([_patches(x, sizes, spec) for x, sizes in streams])
        threshold = _threshold(best, there, point, factor * count, spec)
        merges.append(replace(point, threshold=threshold))
        merged = [tokens.merge(x, sizes, merges[-1], spec, 0.0, shift) for x, sizes in streams]
        left.append(torch.cat([tokens.patches_left(sizes, spec.stem.prefix) for _, sizes in merged]).numpy())
        streams = list(merged)
    return replace(spec, merges=tuple(merges)), np.stack(left, axis=1)


def _threshold(best: list[Tensor], patches: Tensor, point: MergeSpec, wanted: float, spec: ProgramSpec) -> float:
    """Return the threshold above which images of so many patches merge `wanted` pairs on average.

    `best` are products `[B, F]` of rows, and `patches` those of all images, `[n]`.
    """
    most = max(b.shape[1] for b in best)
    products = torch.cat([F.pad(b, (0, most - b.shape[1]), value=-torch.inf) for b in best])
    scores = products[products.isfinite()] / spec.dim
    low, high = float(scores.min()) - 1e-3, float(scores.max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        mean = float(tokens.pairs(products, patches, replace(point, threshold=middle), spec).float().mean())
        low, high = (middle, high) if mean > wanted else (low, middle)
    return high


def _patches(x: Tensor, sizes: tokens.Sizes, spec: ProgramSpec) -> Tensor:
    """Return how many patch tokens every image of a stream has, `[B]`."""
    if sizes is None:
        return torch.full((len(x),), spec.patches, dtype=torch.int32)
    return tokens.patches_left(sizes, spec.stem.prefix)


def _place(spec: ProgramSpec, point: MergeSpec) -> int:
    return 1 + [branch.name for branch in spec.branches].index(point.after)


def _advance(model: Vit, stream: Stream, start: int, end: int) -> Stream:
    """Return the stream after branches `start` to `end` - 1, none of them gated; no token is merged."""
    x, sizes = stream
    for branch in model.spec.branches[start:end]:
        x = step_branch(model, branch, x, None, sizes)
    return x, sizes
