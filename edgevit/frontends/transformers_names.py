"""Names of other libraries' Vision Transformers, as tables: what each of their tensors is called in timm.

A family is found by the name of its first layer. Tensors of queries, keys and values are joined in this order; names
that a table does not know stay and are told by whoever compares them with the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevit.errors import WeightsError
from edgevit.frontends.naming import shorten
from edgevit.util.progress import Say

_PARTS = r"\.(weight|bias)"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One source of names.

    `first` is a name that only this source has. `names` are pairs of a pattern of whole names and what it becomes in
    timm: `attn.q`, `attn.k` and `attn.v` are joined, `T` at the end transposes. `unused` are tensors without a part in
    the output, with what they are; `refused` those that make another network, with the reason.
    """

    title: str
    first: str
    names: tuple[tuple[str, str], ...]
    unused: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


_HF = r"(?:(?:vit|deit|dinov2|dinov2_with_registers)\.)?"
_HF_LAYER = _HF + r"encoder\.layer\.(\d+)\."
_CLIP = r"(?:clip\.)?(?:vision_model\.)?"
_CLIP_LAYER = _CLIP + r"encoder\.layers\.(\d+)\."
_OPENAI_LAYER = r"(?:visual\.)?transformer\.resblocks\.(\d+)\."
_TV_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."

TRANSFORMERS = Family(
    title="transformers' ViT, DeiT and DINOv2",
    first=_HF + r"embeddings\.patch_embeddings\.projection\.weight",
    names=(
        (_HF + r"embeddings\.cls_token", "cls_token"),
        (_HF + r"embeddings\.distillation_token", "dist_token"),
        (_HF + r"embeddings\.register_tokens", "register_tokens"),
        (_HF + r"embeddings\.position_embeddings", "pos_embed"),
        (_HF + r"embeddings\.patch_embeddings\.projection" + _PARTS, r"patch_embed.proj.\1"),
        *(
            (_HF_LAYER + r"attention\.attention\." + name + _PARTS, rf"blocks.\1.attn.{name[0]}.\2")
            for name in ("query", "key", "value")
        ),
        (_HF_LAYER + r"attention\.output\.dense" + _PARTS, r"blocks.\1.attn.proj.\2"),
        (_HF_LAYER + r"intermediate\.dense" + _PARTS, r"blocks.\1.mlp.fc1.\2"),
        (_HF_LAYER + r"output\.dense" + _PARTS, r"blocks.\1.mlp.fc2.\2"),
        (_HF_LAYER + r"layernorm_before" + _PARTS, r"blocks.\1.norm1.\2"),
        (_HF_LAYER + r"layernorm_after" + _PARTS, r"blocks.\1.norm2.\2"),
        (_HF_LAYER + r"norm([12])" + _PARTS, r"blocks.\1.norm\2.\3"),
        (_HF_LAYER + r"mlp\.fc([12])" + _PARTS, r"blocks.\1.mlp.fc\2.\3"),
        (_HF_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
        (_HF + r"layernorm" + _PARTS, r"norm.\1"),
        (r"(?:cls_)?classifier" + _PARTS, r"head.\1"),
        (r"distillation_classifier" + _PARTS, r"head_dist.\1"),
    ),
    unused=(
        (_HF + r"embeddings\.mask_token", "the mask token of pre-training"),
        (_HF + r"pooler\.dense" + _PARTS, "the pooler (Linear and tanh), which no classifier reads"),
        (r"decoder\..*", "the decoder of pre-training"),
    ),
    refused=((_HF_LAYER + r"mlp\.weights_(?:in|out)" + _PARTS, "its FFN is gated (SwiGLU)"),),
)
CLIP = Family(
    title="transformers' CLIP vision tower",
    first=_CLIP + r"embeddings\.patch_embedding\.weight",
    names=(
        (_CLIP + r"embeddings\.class_embedding", "cls_token"),
        (_CLIP + r"embeddings\.position_embedding\.weight", "pos_embed"),
        (_CLIP + r"embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
        (_CLIP + r"pre_layrnorm" + _PARTS, r"norm_pre.\1"),
        *((_CLIP_LAYER + rf"self_attn\.{n}_proj" + _PARTS, rf"blocks.\1.attn.{n}.\2") for n in "qkv"),
        (_CLIP_LAYER + r"self_attn\.out_proj" + _PARTS, r"blocks.\1.attn.proj.\2"),
        (_CLIP_LAYER + r"layer_norm([12])" + _PARTS, r"blocks.\1.norm\2.\3"),
        (_CLIP_LAYER + r"mlp\.fc([12])" + _PARTS, r"blocks.\1.mlp.fc\2.\3"),
        (_CLIP + r"post_layernorm" + _PARTS, r"norm.\1"),
        (r"(?:clip\.)?visual_projection\.weight", "head.weight"),
        (r"classifier" + _PARTS, r"classifier.\1"),  # of the patches' mean without the last norm: `fit` takes it
    ),
    unused=((r"(?:clip\.)?(?:text_model\..*|text_projection\.weight|logit_scale)", "the text tower"),),
    refused=(
        (_CLIP + r"embeddings\.patch_embedding\.bias", "it is no CLIP: its stem has a bias, as SigLIP's"),
        (_CLIP + r"head\..*", "it pools tokens by attention (SigLIP)"),
    ),
)
OPENAI = Family(
    title="OpenAI's CLIP vision tower",
    first=r"(?:visual\.)?ln_pre\.weight",
    names=(
        (r"(?:visual\.)?class_embedding", "cls_token"),
        (r"(?:visual\.)?positional_embedding", "pos_embed"),
        (r"(?:visual\.)?conv1\.weight", "patch_embed.proj.weight"),
        (r"(?:visual\.)?ln_pre" + _PARTS, r"norm_pre.\1"),
        (r"(?:visual\.)?ln_post" + _PARTS, r"norm.\1"),
        (_OPENAI_LAYER + r"attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        (_OPENAI_LAYER + r"attn\.out_proj" + _PARTS, r"blocks.\1.attn.proj.\2"),
        (_OPENAI_LAYER + r"ln_([12])" + _PARTS, r"blocks.\1.norm\2.\3"),
        (_OPENAI_LAYER + r"mlp\.c_fc" + _PARTS, r"blocks.\1.mlp.fc1.\2"),
        (_OPENAI_LAYER + r"mlp\.c_proj" + _PARTS, r"blocks.\1.mlp.fc2.\2"),
        (r"(?:visual\.)?proj", "head.weight.T"),
    ),
)
TORCHVISION = Family(
    title="torchvision's vit",
    first=r"conv_proj\.weight",
    names=(
        (r"class_token", "cls_token"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (r"conv_proj" + _PARTS, r"patch_embed.proj.\1"),
        (_TV_LAYER + r"ln_([12])" + _PARTS, r"blocks.\1.norm\2.\3"),
        (_TV_LAYER + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        (_TV_LAYER + r"self_attention\.out_proj" + _PARTS, r"blocks.\1.attn.proj.\2"),
        (_TV_LAYER + r"mlp\.(?:0|linear_1)" + _PARTS, r"blocks.\1.mlp.fc1.\2"),
        (_TV_LAYER + r"mlp\.(?:3|linear_2)" + _PARTS, r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.ln" + _PARTS, r"norm.\1"),
        (r"heads\.(?:head|0)" + _PARTS, r"head.\1"),
        (r"heads\.pre_logits" + _PARTS, r"pre_logits.fc.\1"),
    ),
)
FAMILIES = (TRANSFORMERS, CLIP, OPENAI, TORCHVISION)


def family_of(state: Mapping[str, Tensor]) -> Family | None:
    """Return the source of these names, None where they are timm's own or unknown."""
    return next((f for f in FAMILIES if any(re.fullmatch(f.first, n) for n in state)), None)


def to_timm_names(state: Mapping[str, Tensor], where: str, say: Say) -> dict[str, Tensor]:
    """Return the tensors of one of `FAMILIES` under timm's names; a state of no family as it is.

    Raises:
        WeightsError: another network than a plain Vision Transformer, queries, keys or values missing, or twice a name.
    """
    family = family_of(state)
    if family is None:
        return dict(state)
    renamed: dict[str, Tensor] = {}
    unused: dict[str, list[str]] = {}
    for name, value in state.items():
        _refuse(family, name, where)
        what = next((w for pattern, w in family.unused if re.fullmatch(pattern, name)), None)
        if what is not None:
            unused.setdefault(what, []).append(name)
            continue
        target = next((m.expand(t) for pattern, t in family.names if (m := re.fullmatch(pattern, name))), name)
        if target.endswith(".T"):
            target, value = target.removesuffix(".T"), value.T.contiguous() if value.ndim == 2 else value
        if target in renamed:
            raise WeightsError(f"{where} holds {target} of {family.title} twice")
        renamed[target] = _three_axes(value) if target in ("cls_token", "pos_embed") else value
    for what, names in unused.items():
        say(f"weights: left out {what} ({shorten(names[:2])}{', ...' if len(names) > 2 else ''})")
    say(f"weights: names are those of {family.title}")
    return join_qkv(renamed, where)


def _refuse(family: Family, name: str, where: str) -> None:
    for pattern, reason in family.refused:
        if re.fullmatch(pattern, name):
            raise WeightsError(f"{where} is not supported: {reason} ({name}); `edgevit models` lists what is supported")


def _three_axes(value: Tensor) -> Tensor:
    while value.ndim < 3:
        value = value.unsqueeze(0)
    return value


def join_qkv(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return queries, keys and values of a block as timm's `qkv`, rows in this order."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        found = re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])\.(weight|bias)", name)
        if found:
            parts.setdefault(f"{found[1]}.qkv.{found[3]}", {})[found[2]] = value
        else:
            joined[name] = value
    for name, three in parts.items():
        shapes = {tuple(value.shape) for value in three.values()}
        if set(three) != set("qkv") or len(shapes) != 1 or () in shapes:
            raise WeightsError(f"{where}: {name} needs queries, keys and values of one shape, got {sorted(three)}")
        joined[name] = torch.cat([three[part] for part in "qkv"])
    return joined
