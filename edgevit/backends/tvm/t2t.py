"""T2T-ViT's stem (arXiv 2101.11986): soft splits and two token-to-token stages, in float.

Shapes: T tokens of a stage, C columns of its input, K = token_dim, m features of a performer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevit.backends.tvm import performer, soft_split
from edgevit.backends.tvm.attention import Heads, attention, scratch
from edgevit.backends.tvm.kernels import Epilogue
from edgevit.backends.tvm.layout import Place, pad_heads
from edgevit.backends.tvm.schedules import Product, pad
from edgevit.backends.tvm.soft_split import Split

if TYPE_CHECKING:
    from edgevit.backends.tvm.stages import Stages, StageWriter


def tokens(stages: Stages, stage: StageWriter) -> Place:
    """uint8 image to `[patches, 9 K]`, everything before the stem's Linear."""
    spec, arena = stages.spec, stages.arena
    image, k = spec.image, spec.stem.token_dim
    std = [255 * s for s in image.std]
    scale, shift = tuple(1 / s for s in std), tuple(m * 255 / s for m, s in zip(image.mean, std, strict=True))
    rows, columns = image.height // 4, image.width // 4
    inner = 3 * pad(k, stages.isa.lanes)
    # Every stage's query, key and value lie at the same place: the second's are fewer, and the first's are then done.
    begin = arena.mark()
    qkv = arena.place(rows * columns, inner)
    end = arena.mark()
    split = Split(rows=image.height, columns=image.width, channels=3, kernel=7, stride=4, padding=2)
    lines = arena.place(*split.lines)
    stage.call("lines", soft_split.image_lines, split, scale, shift, lines, takes=("image", "arena"))
    for name in ("stem.attention1", "stem.attention2"):
        source = _windows(stages, stage, split, lines)
        if name == "stem.attention2":
            arena.release(begin)
            qkv = arena.place(split.windows, inner)
        y = _attention(stages, stage, name, source, qkv, end)
        arena.release(end)
        down, right = split.steps
        split = Split(rows=down, columns=right, channels=k, kernel=3, stride=2, padding=1)
        lines = arena.place(*split.lines)
        stage.call("lines", soft_split.map_lines, split, y, lines, takes=("arena",))
    return _windows(stages, stage, split, lines)


def _windows(stages: Stages, stage: StageWriter, split: Split, lines: Place) -> Place:
    windows = stages.arena.place(split.windows, split.width)
    stage.call("unfold", soft_split.unfold, split, lines, windows, takes=("arena",))
    return windows


def _attention(stages: Stages, stage: StageWriter, name: str, source: Place, qkv: Place, work: int) -> Place:
    """One token-to-token stage, `[T, C]` to `[T, K]`: v + proj(attention), then + FFN, where v was.

    Args:
        stages: whose arena it is.
        stage: where to.
        name: of the stage.
        source: `[T, C]`, normed in place.
        qkv: `[T, 3 K]`.
        work: where in the arena there is room once query, key and value are made.
    """
    spec, weights, arena = stages.spec, stages.program.weights, stages.arena
    k, stride = spec.stem.token_dim, pad(spec.stem.token_dim, stages.isa.lanes)
    stage.norm(f"{name}.norm1", source, source)
    weight, bias = (weights[f"{name}.qkv.{part}"].copy() for part in ("weight", "bias"))
    performs = spec.stem.kind == "t2t_performer"
    if not performs:
        weight[:, :k] *= np.float32(k**-0.5)
        bias[:k] *= np.float32(k**-0.5)
    weight, bias = pad_heads(weight, 3, k, stride), pad_heads(bias, 3, k, stride)
    stage.product("qkv", None, source, qkv, weight, bias, Epilogue())
    query, key, value = (qkv.columns(part * stride, k) for part in range(3))
    arena.release(work)
    attended = arena.place(source.rows, k)
    mark = arena.mark()
    if performs:
        _performer(stages, stage, name, query, key, value, attended)
    else:
        heads = Heads(count=1, width=k, stride=stride, query=query, key=key, value=value)
        tile = stages.choose(stages.isa, Product(rows=query.rows, columns=key.rows, depth=k))
        stage.call("attention", attention, heads, attended, scratch(arena, heads, tile, stages.isa.lanes), tile)
    arena.release(mark)
    onto = Epilogue(onto=True)
    stage.product("proj", None, attended, value, weights[f"{name}.proj.weight"], weights[f"{name}.proj.bias"], onto)
    hidden = arena.place(source.rows, k)
    stage.norm(f"{name}.norm2", value, attended)
    inner = Epilogue(activation="gelu")
    stage.product("fc1", None, attended, hidden, weights[f"{name}.fc1.weight"], weights[f"{name}.fc1.bias"], inner)
    stage.product("fc2", None, hidden, value, weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"], onto)
    return value


def _performer(
    stages: Stages, stage: StageWriter, name: str, query: Place, key: Place, value: Place, target: Place
) -> None:
    arena, projection = stages.arena, stages.program.weights[f"{name}.w"].T
    count = projection.shape[1]
    parts = []
    for source in (query, key):
        found = arena.place(source.rows, count)
        stage.product("features", None, source, found, projection, None, Epilogue())
        stage.call("exp", performer.features, source, found, count, takes=("arena",))
        parts.append(found)
    queries, keys = parts
    mixed, total = arena.place(count, value.width), arena.place(1, count)
    tile = stages.choose(stages.isa, Product(rows=count, columns=value.width, depth=key.rows))
    stage.call("keys", performer.keys_and_values, keys, value, mixed, total, tile, takes=("arena",))
    tile = stages.choose(stages.isa, Product(rows=query.rows, columns=value.width, depth=count))
    stage.call("mix", performer.mix, queries, mixed, total, target, tile, takes=("arena",))
