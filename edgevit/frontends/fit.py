"""Weights to the module they belong to: pooling, classes and image size are those of the weights, or are asked for.

timm's own filter drops, resamples and crops on its way into a module; nothing of it is used. Here names and shapes must
agree in the end, and whatever is not simply the weights' own (a resampled position embedding, a classifier that is
not there) is said.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import UnsupportedModelError, WeightsError
from edgevit.frontends.catalogue import read_catalogue
from edgevit.frontends.checkpoint import check_keys, classes_of
from edgevit.frontends.grid import Size, grid_of, say_grid
from edgevit.frontends.refusal import refusal
from edgevit.frontends.timm_import import timm
from edgevit.util.progress import Say

# Builds the module with timm's options; `meta` without memory for its weights.
Create = Callable[[dict[str, Any], bool], nn.Module]


def fit(
    state: Mapping[str, Tensor],
    create: Create,
    what: str,
    *,
    classes: int | None = None,
    image_size: Size | None = None,
    antialias: bool = True,
    say: Say,
) -> nn.Module:
    """Return the module that `create` builds, with the weights of `state` in it.

    Args:
        state: tensors with timm's names.
        create: builds the module.
        what: the model, for messages.
        classes: length of the output; None: as the weights have it.
        image_size: height and width; None: as the weights' position embedding has it.
        antialias: how the position embedding is resampled, where `image_size` asks for it.
        say: told what is read from the weights against the model's default, and what is missing or resampled.

    Raises:
        UnsupportedModelError: the model is no plain pre-norm ViT, or has no such size.
        WeightsError: the weights are another model's.
    """
    state = timm_forms(state, what)
    options, state = _head_options(state, create, what, classes, say)
    if image_size is not None:
        options["img_size"] = image_size
    model = _checked(create, options, what)
    _check_patch(state, model, what)
    usual: Any = create({}, True)
    default = tuple(usual.patch_embed.img_size)
    state, size = _positioned(state, model, default, image_size, what, antialias=antialias, say=say)
    if size is not None:
        options["img_size"] = size
        model = _checked(create, options, what)
    expected = {n: tuple(v.shape) for n, v in model.state_dict().items()}
    check_keys(state, expected, what)
    model = create(options, False)
    model.load_state_dict(state)
    return model


def timm_forms(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return older and upstream forms of timm's names as timm's own; all are the same numbers.

    These are DeiT III's `gamma_1`, DINOv2's chunks of blocks and register tokens, a stem stored as a Linear, and a
    classifier without bias.

    Raises:
        WeightsError: a representation layer (`pre_logits`), which a Program has no place for, or a name given twice.
    """
    if any("pre_logits" in name for name in state):
        raise WeightsError(
            f"the weights of {what} have a representation layer (pre_logits: Linear and tanh) before the classifier, "
            "which edgevit has no place for; without it they are another model. Fine-tune without it, or take weights "
            "that were released without it"
        )
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        target = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        target = re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", target)
        if target in renamed:
            raise WeightsError(f"the weights of {what} hold {target!r} twice")
        renamed[target] = value
    _check_tokens(renamed, what)
    if "register_tokens" in renamed and {"cls_token", "pos_embed"} <= set(renamed):
        position = renamed["pos_embed"]
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + position[:, :1]
        renamed["pos_embed"] = position[:, 1:]
    stem = renamed.get("patch_embed.proj.weight")
    if stem is not None and stem.ndim == 2:
        side = math.isqrt(stem.shape[1] // 3)
        if side and 3 * side * side == stem.shape[1]:
            renamed["patch_embed.proj.weight"] = stem.reshape(-1, 3, side, side)
    for head in ("head", "head_dist"):
        weight = renamed.get(f"{head}.weight")
        if weight is not None and weight.ndim == 2 and f"{head}.bias" not in renamed:
            renamed[f"{head}.bias"] = torch.zeros(weight.shape[0])
    return renamed


def _check_tokens(state: Mapping[str, Tensor], what: str) -> None:
    """Raise WeightsError unless tokens and their positions, which are added to each other, are `[1, rows, dim]`."""
    names = ("cls_token", "dist_token", "reg_token", "register_tokens", "pos_embed")
    shapes = {name: list(state[name].shape) for name in names if name in state}
    if any(len(s) != 3 or s[0] != 1 or 0 in s for s in shapes.values()) or len({s[-1] for s in shapes.values()}) > 1:
        stated = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise WeightsError(f"the weights of {what} hold {stated}; expected [1, rows, dim] of one dim")


def _head_options(
    state: dict[str, Tensor], create: Create, what: str, classes: int | None, say: Say
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options of timm for the pooling and the classes that the weights have, and the weights under their names."""
    options: dict[str, Any] = {}
    if "classifier.weight" in state:
        # transformers' CLIPForImageClassification reads the mean of the patches, before the tower's last norm.
        left = {n: v for n, v in state.items() if not n.startswith("norm.")}
        state = {re.sub(r"^classifier\.", "head.", n): v for n, v in left.items()}
        options |= {"global_pool": "avg", "fc_norm": False, "final_norm": False}
        say("weights: the classifier reads the mean of the patches; the tower's last norm has no part in it")
    model: Any = create({}, True)
    if getattr(model, "global_pool", "") == "token" and "fc_norm.weight" in state and "norm.weight" not in state:
        options["global_pool"] = "avg"
        say(f"weights: fc_norm instead of norm, so {what} pools the mean of its patches, as MAE fine-tunes it")
    found = classes_of(state)
    if classes is None and found is None and "head.weight" not in state and state:
        found = 0
        if getattr(model, "num_classes", 0):
            say("weights: there is no classifier among them; the output is the pooled row of features")
    classes = found if classes is None else classes
    if classes is not None:
        options["num_classes"] = classes
    return options, state


def _checked(create: Create, options: dict[str, Any], what: str) -> Any:
    model = create(options, True)
    reason = refusal(model)
    if reason is not None:
        raise UnsupportedModelError(f"{what} is not supported: {reason}; `edgevit models` lists what is supported")
    return model


def _check_patch(state: Mapping[str, Tensor], model: Any, what: str) -> None:
    stem = state.get("patch_embed.proj.weight")
    expected = tuple(model.patch_embed.proj.weight.shape)
    if stem is None or stem.ndim != 4 or tuple(stem.shape[2:]) == expected[2:]:
        return
    rows, columns = stem.shape[2:]
    near = _near(what, rows, expected[2]) if rows == columns else []
    advice = (
        f"name a model of that patch size, such as {', '.join(near)}" if near else "name a model of that patch size"
    )
    raise WeightsError(
        f"the weights have patches of {rows} x {columns} pixels, {what} has {expected[2]} x {expected[3]}; {advice}"
    )


def _near(what: str, patch: int, expected: int) -> list[str]:
    """Return names of models with another patch size, those most like the one in `what` first."""
    found = re.search(r"'([\w.]+)'", what)
    name = (found[1] if found else "").partition(".")[0].replace(f"patch{expected}", f"patch{patch}")
    fitting = dict.fromkeys(e.name.partition(".")[0] for e in read_catalogue().models if e.fits and e.patch == patch)
    return difflib.get_close_matches(name, list(fitting), n=3, cutoff=0.4)


def _positioned(
    state: dict[str, Tensor], model: Any, default: Size, asked: Size | None, what: str, *, antialias: bool, say: Say
) -> tuple[dict[str, Tensor], Size | None]:
    """Return the weights with a position embedding for the size to build, and this size (None: the model's default)."""
    table = state.get("pos_embed")
    if table is None or model.pos_embed is None or table.ndim != 3 or table.shape[2] != model.embed_dim:
        return state, asked
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    patch = model.patch_embed.patch_size[0]
    grid = grid_of(table.shape[1] - prefix, patch, default=default, asked=asked, what=what)
    say_grid(grid, table[0, prefix:], patch, default=default, asked=asked, say=say)
    size = asked or (grid[0] * patch, grid[1] * patch)
    wanted = (size[0] // patch, size[1] // patch)
    if grid != wanted:
        table = timm.layers.resample_abs_pos_embed(
            table, list(wanted), list(grid), num_prefix_tokens=prefix, antialias=antialias
        )
    return {**state, "pos_embed": table}, size
