"""Modules of timm's plain pre-norm Vision Transformers: built by name, refused with a reason, turned into Programs.

What fits is found by looking at the built module (exact types and attributes), never at its name: a module of a type
not known here could compute anything, so it is refused with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from edgevit.errors import UnknownModelError, UnsupportedModelError
from edgevit.frontends.refusal import activation_name, refusal
from edgevit.frontends.t2t import CONFIGS
from edgevit.frontends.timm_import import timm
from edgevit.program.program import Program
from edgevit.program.spec import (
    BranchSpec,
    CropMode,
    HeadSpec,
    ImageSpec,
    ProgramSpec,
    StemSpec,
)

SEED = 0
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def program_from_module(
    model: nn.Module, name: str, *, origin: dict[str, str] | None = None, published: bool = False
) -> Program:
    """Return the Program of a timm `VisionTransformer` that stands in memory; the module is not changed.

    Args:
        model: the module; its `pretrained_cfg`, if it has one, gives the preprocessing.
        name: the Program's name, timm's tag included if known.
        origin: added to the Program's origin.
        published: the weights are those that timm publishes, so that the configuration's tag and licence are theirs.

    Raises:
        UnsupportedModelError: the model does not fit, with the reason.
    """
    reason = refusal(model)
    if reason is not None:
        raise UnsupportedModelError(f"{name!r} is not supported: {reason}; `edgevit models` lists what is supported")
    with torch.no_grad():
        spec = program_spec(model, name, {"source": "timm"} if origin is None else origin, published=published)
        # Copied, so that training the module later does not reach into the Program.
        arrays = {n: a.float().cpu().numpy().copy() for n, a in program_arrays(model, spec).items()}
    return Program(spec=spec, weights=arrays)


def check_name(name: str) -> None:
    """Raise UnknownModelError, with the nearest names, unless timm knows this name (and tag)."""
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture) and (not tag or name in timm.list_pretrained(architecture + ".*")):
        return
    if timm.is_model(architecture):
        tags = ", ".join(timm.list_pretrained(architecture + ".*")) or "none"
        raise UnknownModelError(f"timm has no weights named {name!r}; those of {architecture} are: {tags}")
    known = [*timm.list_models(["deit*", "vit_*"]), *CONFIGS]
    near = difflib.get_close_matches(architecture, known, n=4, cutoff=0.5)
    hint = f"nearest names: {', '.join(near)}" if near else "`edgevit models` lists what is supported"
    raise UnknownModelError(f"no model is named {name!r}; {hint}")


def meta_model(name: str, options: dict[str, Any] | None = None) -> nn.Module:
    """Return the model without memory for its weights, for looking at its structure.

    Raises:
        UnsupportedModelError: timm cannot build it with these options.
    """
    try:
        with torch.device("meta"):
            return create(name, pretrained=False, **(options or {}))
    except Exception as error:  # any of timm's models may be asked for; none may end in a trace
        raise UnsupportedModelError(f"timm cannot build {name!r} with {options or 'its defaults'}: {error}") from error


def create(name: str, **options: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **options)
    return model.eval()


def random_model(name: str, options: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return create(name, pretrained=False, **options)


def program_spec(model: Any, name: str, origin: dict[str, str], *, published: bool = False) -> ProgramSpec:
    """Return the spec of a timm module that `refusal` has passed; its weights are not read.

    Tag and licence of its configuration are in the origin where the weights are those that timm publishes.
    """
    embed, distilled, linear = model.patch_embed, hasattr(model, "head_dist"), isinstance(model.head, nn.Linear)
    inner = model.blocks[0].attn.q_norm
    branches = [b for index, block in enumerate(model.blocks) for b in _branches(index, block)]
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    return ProgramSpec(
        name=name.partition(".")[0],
        image=image_spec(config, *embed.img_size),
        dim=model.embed_dim,
        norm_eps=model.blocks[0].norm1.eps,
        qk_norm_eps=inner.eps if _is_norm(inner) else model.blocks[0].norm1.eps,
        stem=StemSpec(
            kind="patch", patch=embed.patch_size[0], prefix=model.num_prefix_tokens, norm=_is_norm(model.norm_pre)
        ),
        branches=tuple(branches),
        head=HeadSpec(
            pool="prefix" if model.global_pool == "token" else "mean",
            prefix=2 if distilled else 1,
            norm=_is_norm(model.norm),
            pooled_norm=_is_norm(model.fc_norm) and not distilled,  # timm's distilled forward has no fc_norm
            classes=model.head.out_features if linear else model.embed_dim,
            linear=linear or distilled,
        ),
        origin={"model": name} | origin | (_facts(config, name) if published else {}),
    )


def image_spec(config: Mapping[str, Any], height: int, width: int) -> ImageSpec:
    """Return the preprocessing as a pretrained configuration states it, timm's own defaults where it does not.

    All that timm evaluates with is taken: mean, std, `crop_pct`, `crop_mode` and interpolation. `test_input_size` and
    `test_crop_pct` are not: the size is that of the weights, and the crop the one stated for it.

    Raises:
        UnsupportedModelError: an interpolation or a crop mode that cannot be kept.
    """
    mean = tuple(float(v) for v in config.get("mean") or timm.data.IMAGENET_DEFAULT_MEAN)
    std = tuple(float(v) for v in config.get("std") or timm.data.IMAGENET_DEFAULT_STD)
    interpolation: Any = config.get("interpolation") or "bicubic"
    crop_mode: Any = config.get("crop_mode") or "center"
    if interpolation not in INTERPOLATIONS or crop_mode not in get_args(CropMode):
        raise UnsupportedModelError(
            f"timm's configuration asks for interpolation {interpolation!r} and crop mode {crop_mode!r}; allowed: "
            f"{', '.join(INTERPOLATIONS)}, and {', '.join(get_args(CropMode))}"
        )
    return ImageSpec(
        height=height,
        width=width,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        crop_pct=float(config.get("crop_pct") or timm.data.DEFAULT_CROP_PCT),
        interpolation=interpolation,
        crop_mode=crop_mode,
    )


def _facts(config: dict[str, Any], name: str) -> dict[str, str]:
    """Return the tag and the licence of published weights."""
    facts, tag = {"model": name}, config.get("tag")
    if isinstance(tag, str) and tag and "." not in name:
        facts["model"] = f"{name}.{tag}"
    if isinstance(config.get("license"), str):
        facts["license"] = config["license"]
    return facts


def _branches(index: int, block: Any) -> tuple[BranchSpec, BranchSpec]:
    heads, head_dim, neurons = block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features
    activation = activation_name(block.mlp.act)
    assert activation is not None  # refusal() has looked
    mhsa = BranchSpec(
        name=f"b{index:02d}_mhsa",
        kind="mhsa",
        kept=tuple(range(heads)),
        units_total=heads,
        head_dim=head_dim,
        scale=block.attn.scale,
        qk_norm=_is_norm(block.attn.q_norm),
    )
    ffn = BranchSpec(
        name=f"b{index:02d}_ffn",
        kind="ffn",
        kept=tuple(range(neurons)),
        units_total=neurons,
        activation=activation,
    )
    return mhsa, ffn


def program_arrays(model: Any, spec: ProgramSpec) -> dict[str, Tensor]:
    """Return every array of the Program; see `expected_shapes` for names and shapes."""
    weight = model.patch_embed.proj.weight
    arrays = {
        # [dim, channel, row, column] to rows in the order of a uint8 image's bytes: (row, column, channel).
        "stem.weight": weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]),
        "stem.bias": _or(model.patch_embed.proj.bias, torch.zeros(spec.dim)),
    }
    arrays["stem.prefix"], arrays["stem.pos"] = _prefix_and_position(model, spec)
    if spec.stem.norm:
        arrays |= _norm("stem.norm", model.norm_pre)
    for index, block in enumerate(model.blocks):
        mhsa, ffn = f"b{index:02d}_mhsa", f"b{index:02d}_ffn"
        arrays |= _norm(f"{mhsa}.norm", block.norm1) | _linear(f"{mhsa}.qkv", block.attn.qkv)
        if _is_norm(block.attn.q_norm):
            arrays |= _norm(f"{mhsa}.q_norm", block.attn.q_norm) | _norm(f"{mhsa}.k_norm", block.attn.k_norm)
        arrays |= _linear(f"{mhsa}.proj", block.attn.proj, block.ls1)
        arrays |= _norm(f"{ffn}.norm", block.norm2) | _linear(f"{ffn}.fc1", block.mlp.fc1)
        arrays |= _linear(f"{ffn}.fc2", block.mlp.fc2, block.ls2)
    return arrays | _head_arrays(model, spec)


def _prefix_and_position(model: Any, spec: ProgramSpec) -> tuple[Tensor, Tensor]:
    """Return class, distillation and register tokens with their position folded in, and the patches' position."""
    names = ("cls_token", "dist_token") if hasattr(model, "head_dist") else ("cls_token", "reg_token")
    tokens = [getattr(model, n)[0] for n in names if getattr(model, n, None) is not None]
    prefix = torch.cat(tokens) if tokens else torch.zeros(0, spec.dim)
    if model.pos_embed is None:
        return prefix, torch.zeros(spec.patches, spec.dim)
    position = model.pos_embed[0]
    if model.no_embed_class:
        return prefix, position
    return prefix + position[: spec.stem.prefix], position[spec.stem.prefix :]


def _head_arrays(model: Any, spec: ProgramSpec) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    if spec.head.norm:
        arrays |= _norm("head.norm", model.norm)
    if spec.head.pooled_norm:
        arrays |= _norm("head.pooled_norm", model.fc_norm)
    if not spec.head.linear:
        return arrays
    if not hasattr(model, "head_dist"):
        return arrays | _linear("head", model.head)
    # The mean of two heads, each on its own token, is one Linear on both tokens.
    parts = [
        _linear("head", h) if isinstance(h, nn.Linear) else _identity(spec.dim) for h in (model.head, model.head_dist)
    ]
    arrays["head.weight"] = torch.cat([p["head.weight"] / 2 for p in parts])
    arrays["head.bias"] = (parts[0]["head.bias"] + parts[1]["head.bias"]) / 2
    return arrays


def _identity(dim: int) -> dict[str, Tensor]:
    return {"head.weight": torch.eye(dim), "head.bias": torch.zeros(dim)}


def _linear(name: str, linear: nn.Linear, scale: nn.Module | None = None) -> dict[str, Tensor]:
    """Return a Linear as `[in, out]` and a bias (zeros where it has none), a LayerScale behind it folded in."""
    weight, bias = linear.weight.T, _or(linear.bias, torch.zeros(linear.out_features))
    if isinstance(scale, timm.layers.LayerScale):
        weight, bias = weight * scale.gamma, bias * scale.gamma
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _norm(name: str, norm: nn.LayerNorm) -> dict[str, Tensor]:
    shape = norm.normalized_shape
    return {f"{name}.weight": _or(norm.weight, torch.ones(shape)), f"{name}.bias": _or(norm.bias, torch.zeros(shape))}


def _or(value: Tensor | None, default: Tensor) -> Tensor:
    return default if value is None else value


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm)
