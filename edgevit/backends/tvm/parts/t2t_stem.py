"""T2T-ViT's stem (arXiv 2101.11986): soft splits and two token-to-token stages, in float.

Windows overlap, so all of them take more memory than all else: they are made, used and forgotten block by block, in
each of a performer's two passes anew. Shapes: T tokens of a stage, C columns of a window, K = token_dim.
"""

from __future__ import annotations

import numpy as np

from edgevit.backends.tvm.codegen.layout import Place, pad_columns, pad_heads
from edgevit.backends.tvm.codegen.schedules import Product, pad
from edgevit.backends.tvm.codegen.threads import parts
from edgevit.backends.tvm.kernels import token_stage
from edgevit.backends.tvm.kernels.attention import attention, scratch
from edgevit.backends.tvm.kernels.common import Epilogue
from edgevit.backends.tvm.kernels.heads import Heads
from edgevit.backends.tvm.kernels.soft_split import Split
from edgevit.backends.tvm.kernels.token_stage import (
    Keys,
    Linear,
    Pixels,
    Queries,
    Tail,
    Windows,
)
from edgevit.backends.tvm.parts.stage import Shared, StageWriter

# A block's windows stay in the second cache.
BLOCK_BYTES = 1 << 17


def embed(shared: Shared, stage: StageWriter, target: Place) -> None:
    """Map uint8 image to `target` `[patches, D]` with positions."""
    weights, entry = shared.program.weights, shared.entry("stem")
    windows = stage.quantized(entry, t2t_tokens(shared, stage))
    position = stage.blob.add(pad_columns(weights["stem.pos"] + weights["stem.bias"], target.stride))
    stage.product("stem", entry, windows, target, weights["stem.weight"], None, Epilogue(table=position))


def t2t_tokens(shared: Shared, stage: StageWriter) -> Place:
    """Map uint8 image to `[patches, 9 K]`, everything before the stem's Linear."""
    spec, arena = shared.spec, shared.arena
    image, k, lanes = spec.image, spec.stem.token_dim, shared.isa.lanes
    std = [255 * s for s in image.std]
    pixels = Pixels(
        scale=tuple(1 / s for s in std), shift=tuple(m * 255 / s for m, s in zip(image.mean, std, strict=True))
    )
    first = _split(image.height, image.width, 3, 7, 4, 2, lanes)
    second = _split(*first.steps, k, 3, 2, 1, lanes)
    third = _split(*second.steps, k, 3, 2, 1, lanes)
    stem = _performer if spec.stem.kind == "t2t_performer" else _transformer
    # Of a performer's stage only the value is left; of full attention's query, key and value that lie side by side.
    width = k if stem is _performer else 3 * pad(k, lanes)
    outer = arena.place(second.windows, width)
    mark = arena.mark()
    inner = arena.place(first.windows, width)
    found = stem(shared, stage, "stem.attention1", first, pixels, inner)
    found = stem(shared, stage, "stem.attention2", second, found, outer)
    arena.release(mark)
    target = arena.place(third.windows, third.width)
    mark = arena.mark()
    windows = Windows(split=third, origin=found, lines=arena.place(*third.lines), rows=target)
    stage.call("unfold", token_stage.unfold, windows, target, _repeat(shared, mark, third), takes=("arena",))
    return target


def _split(rows: int, columns: int, channels: int, kernel: int, stride: int, padding: int, lanes: int) -> Split:
    """A soft split in the largest blocks whose windows take at most BLOCK_BYTES, of one row of windows at least."""
    sizes = {"rows": rows, "columns": columns, "channels": channels}
    one = Split(**sizes, kernel=kernel, stride=stride, padding=padding, down=1)
    row_bytes = 4 * one.block * pad(one.width, lanes)
    most = max(BLOCK_BYTES // row_bytes, 1)
    down = max(n for n in range(1, one.steps[0] + 1) if one.steps[0] % n == 0 and n <= most)
    return Split(**sizes, kernel=kernel, stride=stride, padding=padding, down=down)


def _repeat(shared: Shared, mark: int, split: Split) -> int:
    """Reserve one copy per thread of what one block has placed since `mark`; return the distance between copies."""
    return shared.arena.repeat(mark, parts(shared.isa.threads, split.blocks))


def _windows(shared: Shared, split: Split, origin: Pixels | Place) -> Windows:
    lines, rows = shared.arena.place(*split.lines), shared.arena.place(split.block, split.width)
    return Windows(split=split, origin=origin, lines=lines, rows=rows)


def _performer(
    shared: Shared, stage: StageWriter, name: str, split: Split, origin: Pixels | Place, value: Place
) -> Place:
    """Return one token-to-token stage, windows `[T, C]` to `value` `[T, K]`: v + proj(attention), then + FFN."""
    arena, weights, k, block = shared.arena, shared.program.weights, shared.spec.stem.token_dim, split.block
    mark = arena.mark()
    windows = _windows(shared, split, origin)
    norm, weight, bias = stage.norm_weights(f"{name}.norm1"), *_qkv(shared, name, 1.0)
    parts = [slice(begin, begin + value.stride) for begin in range(0, 3 * value.stride, value.stride)]
    query, key, to_value = (stage.product_weights(block, weight[:, part], bias[part]) for part in parts)
    projection = weights[f"{name}.w"].T
    count = projection.shape[1]
    project = stage.product_weights(block, projection, None)
    # A block's query lies where its key was, and what is hidden in its FFN there too.
    row, features, attended = arena.place(block, k), arena.place(block, count), arena.place(block, k)
    mixed, total = arena.place(count, k), arena.place(1, count)
    distance = _repeat(shared, mark, split)
    stage.call(
        "keys",
        token_stage.keys,
        Keys(
            windows=windows,
            norm=norm,
            to_key=key,
            to_value=to_value,
            project=project,
            key=row,
            features=features,
            value=value,
            mixed=mixed,
            total=total,
            product=shared.choose(shared.isa, Product(rows=count, columns=k, depth=block)),
            distance=distance,
        ),
        takes=windows.takes,
    )
    work = Queries(
        windows=windows,
        norm=norm,
        to_query=query,
        project=project,
        query=row,
        features=features,
        mixed=mixed,
        total=total,
        attended=attended,
        product=shared.choose(shared.isa, Product(rows=block, columns=k, depth=count)),
        tail=_tail(shared, stage, name, normed=attended, hidden=row, value=value),
        distance=distance,
    )
    stage.call("queries", token_stage.queries, work, takes=windows.takes)
    arena.release(mark)
    return value


def _transformer(
    shared: Shared, stage: StageWriter, name: str, split: Split, origin: Pixels | Place, qkv: Place
) -> Place:
    """Return the same with full attention; `qkv` is `[T, 3 K]`, the result is where its values are."""
    arena, isa, block = shared.arena, shared.isa, split.block
    k, stride = shared.spec.stem.token_dim, pad(shared.spec.stem.token_dim, isa.lanes)
    mark = arena.mark()
    windows, norm = _windows(shared, split, origin), stage.norm_weights(f"{name}.norm1")
    linear = stage.product_weights(block, *_qkv(shared, name, k**-0.5))
    distance = _repeat(shared, mark, split)
    stage.call("qkv", token_stage.project, windows, norm, linear, qkv, distance, takes=windows.takes)
    arena.release(mark)
    query, key, value = (qkv.columns(part * stride, k) for part in range(3))
    heads = Heads(count=1, width=k, stride=stride, query=query, key=key, value=value)
    tile = shared.choose(isa, Product(rows=query.rows, columns=key.rows, depth=k))
    # Every block of rows has read its queries before it writes what it attended to there.
    stage.call("attention", attention, heads, query, scratch(arena, heads, tile, isa), tile)
    arena.release(mark)
    normed, hidden = arena.place(block, k), arena.place(block, k)
    distance = _repeat(shared, mark, split)
    tail = _tail(shared, stage, name, normed=normed, hidden=hidden, value=value)
    stage.call("tail", token_stage.tail, tail, query, split.blocks, distance)
    arena.release(mark)
    return value


def _qkv(shared: Shared, name: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of query, which is scaled, key and value, each padded with zeros to whole vectors."""
    k, stride = shared.spec.stem.token_dim, pad(shared.spec.stem.token_dim, shared.isa.lanes)
    weight, bias = (shared.program.weights[f"{name}.qkv.{part}"].copy() for part in ("weight", "bias"))
    weight[:, :k] *= np.float32(scale)
    bias[:k] *= np.float32(scale)
    return pad_heads(weight, 3, k, stride), pad_heads(bias, 3, k, stride)


def _tail(shared: Shared, stage: StageWriter, name: str, *, normed: Place, hidden: Place, value: Place) -> Tail:
    weights = shared.program.weights

    def linear(part: str) -> Linear:
        weight, bias = (weights[f"{name}.{part}.{kind}"] for kind in ("weight", "bias"))
        return stage.product_weights(normed.rows, weight, bias)

    norm = stage.norm_weights(f"{name}.norm2")
    proj, fc1, fc2 = (linear(part) for part in ("proj", "fc1", "fc2"))
    return Tail(proj=proj, norm=norm, fc1=fc1, fc2=fc2, normed=normed, hidden=hidden, value=value)
