"""T2T-ViT (arXiv 2101.11986): upstream checkpoints to `Program`.

Written from the paper's description; names and shapes of checkpoints are those of yitu-opensource/T2T-ViT. What its
stem computes is in `torch_form/t2t_stem.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgevit.errors import UnknownModelError, UnsupportedModelError
from edgevit.frontends.checkpoint import check_keys, classes_of, describe_file, load_checkpoint
from edgevit.frontends.grid import grid_of, say_grid
from edgevit.frontends.stated import NOTES, class_names, say_assumed
from edgevit.program.program import Program
from edgevit.program.spec import (
    BranchSpec,
    HeadSpec,
    ImageSpec,
    ProgramSpec,
    StemKind,
    StemSpec,
)
from edgevit.util.progress import Say

TOKEN_DIM = 64
PATCH = 16
DEFAULT_SIZE = (224, 224)
NORM_EPS = 1e-5
SEED = 0


@dataclass(frozen=True, kw_only=True)
class T2tConfig:
    """One row of the paper's table of models."""

    stem: StemKind
    dim: int
    depth: int
    heads: int
    ffn_ratio: int


def _config(stem: StemKind, dim: int, depth: int, heads: int, ffn_ratio: int) -> T2tConfig:
    return T2tConfig(stem=stem, dim=dim, depth=depth, heads=heads, ffn_ratio=ffn_ratio)


CONFIGS: Mapping[str, T2tConfig] = {
    "t2t_vit_7": _config("t2t_performer", 256, 7, 4, 2),
    "t2t_vit_10": _config("t2t_performer", 256, 10, 4, 2),
    "t2t_vit_12": _config("t2t_performer", 256, 12, 4, 2),
    "t2t_vit_14": _config("t2t_performer", 384, 14, 6, 3),
    "t2t_vit_19": _config("t2t_performer", 448, 19, 7, 3),
    "t2t_vit_24": _config("t2t_performer", 512, 24, 8, 3),
    "t2t_vit_t_14": _config("t2t_transformer", 384, 14, 6, 3),
    "t2t_vit_t_19": _config("t2t_transformer", 448, 19, 7, 3),
    "t2t_vit_t_24": _config("t2t_transformer", 512, 24, 8, 3),
}


def t2t_program(
    name: str,
    weights: Path | None = None,
    *,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool | None = None,
    say: Say = lambda _: None,
) -> Program:
    """Return a T2T-ViT as a Program, from an upstream checkpoint or random with a fixed seed.

    Args:
        name: one of `CONFIGS`.
        weights: a checkpoint with upstream's names; its classifier decides the classes unless `classes` is given.
        classes: length of the output, 1000 if nothing says otherwise.
        image_size: height and width, multiples of 16; as the weights have it if not given, else 224 x 224.
        ema: of a checkpoint, the averaged weights (True) or the plain ones (False).
        say: told what was chosen, assumed or left out of a checkpoint.

    Raises:
        UnknownModelError: no such T2T-ViT.
        UnsupportedModelError: an image size or a number of classes that is not possible.
        WeightsError: the weights cannot be read or do not fit.
    """
    if name not in CONFIGS:
        near = difflib.get_close_matches(name, CONFIGS, n=3, cutoff=0.0)
        raise UnknownModelError(f"no T2T-ViT is named {name!r}; nearest names: {', '.join(near)}")
    size = image_size or DEFAULT_SIZE
    if any(s < PATCH or s % PATCH for s in size):
        raise UnsupportedModelError(f"{name} needs an image size of multiples of {PATCH}, got {size[0]} x {size[1]}")
    notes: list[str] = []

    def tell(line: str) -> None:
        notes.append(line)
        say(line)

    state = None if weights is None else load_checkpoint(weights, ema=ema, say=tell)
    if state is not None:
        state, size = _positioned(state, image_size, name, tell)
    if classes is None:
        classes = (classes_of(state) if state is not None else None) or 1000
    if classes < 1:
        raise UnsupportedModelError(f"{name} needs one class or more, got {classes}")
    spec = t2t_spec(name, size, classes)
    if weights is None or state is None:
        state = random_state(spec)
        origin = {"source": "edgevit", "model": name, "weights": "random"}
    else:
        check_keys(state, upstream_shapes(spec), name)
        origin = {"source": "T2T-ViT", "model": name} | describe_file(weights)
        say_assumed(spec.image, name, tell)
        class_names(spec, (), "", tell)
        origin |= {NOTES: "; ".join(notes)}
    spec = dataclasses.replace(spec, origin=origin)
    return Program(spec=spec, weights={n: a.numpy() for n, a in _arrays(spec, state).items()})


def upstream_shapes(spec: ProgramSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes in an upstream checkpoint of this model; their sizes add up to the paper's parameter counts."""
    dim, k = spec.dim, spec.stem.token_dim
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "pos_embed": (1, spec.tokens, dim)}
    performer = spec.stem.kind == "t2t_performer"
    for stage, side, channels in _stages(spec):
        width = side * side * channels
        shapes |= _norm_shapes(f"{stage}.norm1", width) | _norm_shapes(f"{stage}.norm2", k)
        if performer:
            shapes |= {f"{stage}.w": (k // 2, k)} | _linear_shapes(f"{stage}.kqv", width, 3 * k)
            shapes |= _linear_shapes(f"{stage}.proj", k, k)
        else:
            shapes |= {f"{stage}.attn.qkv.weight": (3 * k, width)} | _linear_shapes(f"{stage}.attn.proj", k, k)
        for layer in _stage_ffn(performer):
            shapes |= _linear_shapes(f"{stage}.{layer}", k, k)
    shapes |= _linear_shapes("tokens_to_token.project", 9 * k, dim)
    for index, (mhsa, ffn) in enumerate(_blocks(spec)):
        block = f"blocks.{index}"
        shapes |= _norm_shapes(f"{block}.norm1", dim) | {f"{block}.attn.qkv.weight": (3 * mhsa.width, dim)}
        shapes |= _linear_shapes(f"{block}.attn.proj", mhsa.width, dim) | _norm_shapes(f"{block}.norm2", dim)
        shapes |= _linear_shapes(f"{block}.mlp.fc1", dim, ffn.units) | _linear_shapes(
            f"{block}.mlp.fc2", ffn.units, dim
        )
    return shapes | _norm_shapes("norm", dim) | _linear_shapes("head", dim, spec.head.classes)


def random_state(spec: ProgramSpec, seed: int = SEED) -> dict[str, Tensor]:
    """Return upstream's names and initialisation: Linears and class token truncated normal 0.02, `w` orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in upstream_shapes(spec).items():
        value = torch.zeros(shape)
        if name == "pos_embed":
            value = sinusoid_table(spec.tokens, spec.dim).unsqueeze(0)
        elif name.endswith(".w"):
            torch.nn.init.orthogonal_(value, generator=generator).mul_(math.sqrt(shape[0]))
        elif name.endswith(".weight") and len(shape) == 1:
            value = torch.ones(shape)
        elif len(shape) > 1:
            torch.nn.init.trunc_normal_(value, std=0.02, generator=generator)
        state[name] = value
    return state


def sinusoid_table(tokens: int, dim: int) -> Tensor:
    """The fixed position table `[tokens, dim]`: sines in even columns, cosines in odd ones (arXiv 1706.03762)."""
    angle = np.arange(tokens)[:, None] / 10000.0 ** (2 * (np.arange(dim) // 2) / dim)
    return torch.from_numpy(np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32))


def t2t_spec(name: str, size: tuple[int, int] = (224, 224), classes: int = 1000) -> ProgramSpec:
    """Return the spec of one of `CONFIGS`."""
    config = CONFIGS[name]
    branches: list[BranchSpec] = []
    head_dim, neurons = config.dim // config.heads, config.dim * config.ffn_ratio
    for index in range(config.depth):
        branches.append(
            BranchSpec(
                name=f"b{index:02d}_mhsa",
                kind="mhsa",
                kept=tuple(range(config.heads)),
                units_total=config.heads,
                head_dim=head_dim,
                scale=head_dim**-0.5,
            )
        )
        branches.append(
            BranchSpec(name=f"b{index:02d}_ffn", kind="ffn", kept=tuple(range(neurons)), units_total=neurons)
        )
    return ProgramSpec(
        name=name,
        image=ImageSpec(
            height=size[0],
            width=size[1],
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_pct=0.9,
            interpolation="bicubic",
        ),
        dim=config.dim,
        norm_eps=NORM_EPS,
        qk_norm_eps=NORM_EPS,
        stem=StemSpec(kind=config.stem, patch=PATCH, prefix=1, norm=False, token_dim=TOKEN_DIM),
        branches=tuple(branches),
        head=HeadSpec(pool="prefix", prefix=1, norm=True, pooled_norm=False, classes=classes),
    )


def _positioned(
    state: dict[str, Tensor], asked: tuple[int, int] | None, name: str, say: Say
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return the weights with a position table for the size to build, resampled with timm's function, and this size."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return state, asked or DEFAULT_SIZE
    grid = grid_of(table.shape[1] - 1, PATCH, default=DEFAULT_SIZE, asked=asked, what=name)
    say_grid(grid, table[0, 1:], PATCH, default=DEFAULT_SIZE, asked=asked, say=say)
    size = asked or (grid[0] * PATCH, grid[1] * PATCH)
    wanted = (size[0] // PATCH, size[1] // PATCH)
    if grid != wanted:
        from edgevit.frontends.timm_import import timm  # here, because most uses of this file need no timm

        table = timm.layers.resample_abs_pos_embed(table, list(wanted), list(grid), num_prefix_tokens=1)
    return {**state, "pos_embed": table}, size


def _arrays(spec: ProgramSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return upstream's tensors under the Program's names; see `expected_shapes`."""
    prefix = state["cls_token"][0] + state["pos_embed"][0, :1]
    arrays = {"stem.prefix": prefix, "stem.pos": state["pos_embed"][0, 1:]}
    for number, (stage, _, channels) in enumerate(_stages(spec), start=1):
        arrays |= _stage_arrays(spec, state, stage, channels, f"stem.attention{number}")
    arrays |= _linear(state, "tokens_to_token.project", "stem")
    arrays["stem.weight"] = _by_row(arrays["stem.weight"], spec.stem.token_dim)
    for index, (mhsa, ffn) in enumerate(_blocks(spec)):
        block = f"blocks.{index}"
        arrays |= _norm(state, f"{block}.norm1", f"{mhsa.name}.norm") | _linear(
            state, f"{block}.attn.qkv", f"{mhsa.name}.qkv"
        )
        arrays |= _linear(state, f"{block}.attn.proj", f"{mhsa.name}.proj")
        arrays |= _norm(state, f"{block}.norm2", f"{ffn.name}.norm")
        for layer in ("fc1", "fc2"):
            arrays |= _linear(state, f"{block}.mlp.{layer}", f"{ffn.name}.{layer}")
    return arrays | _norm(state, "norm", "head.norm") | _linear(state, "head", "head")


def _stage_arrays(
    spec: ProgramSpec, state: Mapping[str, Tensor], stage: str, channels: int, name: str
) -> dict[str, Tensor]:
    """Return one token-to-token stage: input columns to (row, column, channel), output columns to q, k, v."""
    performer, k = spec.stem.kind == "t2t_performer", spec.stem.token_dim
    attention = stage if performer else f"{stage}.attn"
    arrays = _norm(state, f"{stage}.norm1", f"{name}.norm1") | _norm(state, f"{stage}.norm2", f"{name}.norm2")
    arrays |= _linear(state, f"{attention}.{'kqv' if performer else 'qkv'}", f"{name}.qkv")
    arrays |= _linear(state, f"{attention}.proj", f"{name}.proj")
    for layer, ours in zip(_stage_ffn(performer), ("fc1", "fc2"), strict=True):
        arrays |= _linear(state, f"{stage}.{layer}", f"{name}.{ours}")
    width = arrays[f"{name}.norm1.weight"].shape[0]
    for part in ("norm1.weight", "norm1.bias", "qkv.weight"):
        arrays[f"{name}.{part}"] = _by_row(arrays[f"{name}.{part}"], channels)
    for part in ("qkv.weight", "qkv.bias"):
        first, second, third = arrays[f"{name}.{part}"].chunk(3, dim=-1)
        if performer:  # upstream's order is k, q, v
            first, second = second, first
        else:  # upstream scales by the stage's input width, a Program by token_dim
            first = first * (k / width) ** 0.5
        arrays[f"{name}.{part}"] = torch.cat([first, second, third], dim=-1)
    return arrays | ({f"{name}.w": state[f"{stage}.w"]} if performer else {})


def _by_row(x: Tensor, channels: int) -> Tensor:
    """Return rows in Unfold's order (channel, row, column) to (row, column, channel)."""
    return x.reshape(channels, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def _stages(spec: ProgramSpec) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
    """Return upstream's name, window side and channels of the map before the split, for both stages."""
    return ("tokens_to_token.attention1", 7, 3), ("tokens_to_token.attention2", 3, spec.stem.token_dim)


def _stage_ffn(performer: bool) -> tuple[str, str]:
    return ("mlp.0", "mlp.2") if performer else ("mlp.fc1", "mlp.fc2")


def _blocks(spec: ProgramSpec) -> list[tuple[BranchSpec, BranchSpec]]:
    return list(zip(spec.branches[::2], spec.branches[1::2], strict=True))


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear_shapes(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(state: Mapping[str, Tensor], source: str, name: str) -> dict[str, Tensor]:
    return {f"{name}.{part}": state[f"{source}.{part}"] for part in ("weight", "bias")}


def _linear(state: Mapping[str, Tensor], source: str, name: str) -> dict[str, Tensor]:
    """A Linear as `[in, out]`, with zeros where upstream has no bias (the queries, keys and values of blocks)."""
    weight = state[f"{source}.weight"].T
    return {f"{name}.weight": weight, f"{name}.bias": state.get(f"{source}.bias", torch.zeros(weight.shape[1]))}
