"""Why a built timm model is not a plain pre-norm ViT, if it is not.

Exact types are compared: a subclass may override `forward`, so only classes whose arithmetic is known here pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from edgevit.frontends.timm_import import timm
from edgevit.program.spec import Activation

_vit = timm.models.vision_transformer
_layers = timm.layers
_MODELS = (_vit.VisionTransformer, timm.models.deit.VisionTransformerDistilled)
_NORMS = (nn.LayerNorm, _layers.LayerNorm, _layers.LayerNormFp32)
_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    _layers.GELU: "gelu",
    _layers.GELUTanh: "gelu_tanh",
    _layers.QuickGELU: "quick_gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
}
_BLOCKS = {
    _vit.ResPostBlock: "it normalises the output of a branch, not its input",
    _vit.ParallelScalingBlock: "its MHSA and FFN run in parallel",
    _vit.ParallelThingsBlock: "it runs several branches in parallel",
    _vit.DiffParallelScalingBlock: "its MHSA and FFN run in parallel",
}


def activation_name(module: nn.Module) -> Activation | None:
    """Return the Program's name of an activation module, None if it has none."""
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return _ACTIVATIONS.get(type(module))


def refusal(model: nn.Module) -> str | None:
    """Return every reason why `model` cannot be a Program, or None if it can. Weights are not read."""
    return "; ".join(dict.fromkeys(_reasons(model))) or None


def _reasons(model: Any) -> Iterator[str]:
    if type(model) not in _MODELS:
        yield f"it is a {type(model).__name__}, not a plain Vision Transformer{_trait(model)}"
        return
    yield from _stem_reasons(model)
    if not len(model.blocks):
        yield "it has no blocks"
        return
    for index, block in enumerate(model.blocks):
        reasons = [f"block {index} {reason}" for reason in _block_reasons(block)]
        yield from reasons
        if reasons:  # the following blocks would repeat them
            return
    yield from _head_reasons(model)
    yield from _eps_reasons(model)


def _trait(model: Any) -> str:
    """Return what sets a known relative of the Vision Transformer apart, in words."""
    blocks = getattr(model, "blocks", None)
    first = blocks[0] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else None
    if getattr(model, "rope", None) is not None:
        return ": it rotates queries and keys by position (RoPE)"
    if getattr(getattr(first, "attn", None), "rel_pos", None) is not None:
        return ": it adds a bias by relative position to the attention scores"
    return ""


def _stem_reasons(model: Any) -> Iterator[str]:
    embed = model.patch_embed
    if type(embed) is not _layers.PatchEmbed:
        yield f"its stem is a {type(embed).__name__}, not one convolution over patches"
        return
    if type(embed.norm) is not nn.Identity:
        yield "its stem normalises patches before the position embedding"
    if embed.patch_size[0] != embed.patch_size[1]:
        yield f"its patches are not square: {embed.patch_size[0]} x {embed.patch_size[1]}"
    if embed.proj.in_channels != 3:
        yield f"it reads {embed.proj.in_channels} channels, not RGB"
    (height, width), patch = embed.img_size, embed.patch_size[0]
    if height % patch or width % patch:
        yield (
            f"its input {height} x {width} is no multiple of the patch size {patch}; "
            f"give the image size {height // patch * patch} x {width // patch * patch}"
        )
    if type(model.norm_pre) not in (nn.Identity, *_NORMS):
        yield f"the norm after its stem is a {type(model.norm_pre).__name__}"


def _block_reasons(block: Any) -> Iterator[str]:
    if type(block) is not _vit.Block:
        yield f"is a {type(block).__name__}: {_BLOCKS.get(type(block), 'not pre-norm MHSA, then pre-norm FFN')}"
        return
    attention, mlp = block.attn, block.mlp
    if type(attention) is not _layers.Attention:
        yield f"has a {type(attention).__name__}, not plain softmax attention"
        return
    if type(mlp) is not _layers.Mlp or type(mlp.fc1) is not nn.Linear:
        gated = " (a gated FFN, SwiGLU)" if type(mlp) in (_layers.GluMlp, _layers.SwiGLU) else ""
        yield f"has a {type(mlp).__name__}{gated}, not an FFN of two Linears"
        return
    if attention.gate is not None:
        yield "multiplies the attention output by a gate"
    for part, module in (("attention", attention.norm), ("FFN", mlp.norm)):
        if type(module) is not nn.Identity:
            yield f"normalises inside the {part} branch ({type(module).__name__} before its last Linear)"
    for norm in (block.norm1, block.norm2):
        if type(norm) not in _NORMS:
            yield f"is normalised by {type(norm).__name__}, not LayerNorm"
    kinds = {type(attention.q_norm), type(attention.k_norm)}
    if kinds != {nn.Identity} and not kinds <= set(_NORMS):
        yield f"normalises queries and keys by {' and '.join(sorted(k.__name__ for k in kinds))}, not LayerNorm"
    if attention.scale != attention.head_dim**-0.5:
        yield f"scales attention by {attention.scale}, not by head_dim ** -0.5"
    for scale in (block.ls1, block.ls2):
        if type(scale) not in (nn.Identity, _layers.LayerScale):
            yield f"scales its branches by {type(scale).__name__}"
    if activation_name(mlp.act) is None:
        yield f"has the activation {type(mlp.act).__name__}"


def _head_reasons(model: Any) -> Iterator[str]:
    if model.attn_pool is not None:
        yield f"it pools tokens by attention ({type(model.attn_pool).__name__})"
    elif model.global_pool not in ("token", "avg"):
        yield f"its pooling is {model.global_pool or 'none'!r}, not the class token or the mean"
    if model.global_pool == "avg" and model.pool_include_prefix and model.num_prefix_tokens:
        yield "its mean pooling includes the prefix tokens"
    for norm in (model.norm, model.fc_norm):
        if type(norm) not in (nn.Identity, *_NORMS):
            yield f"its last norm is a {type(norm).__name__}, not LayerNorm"
    heads = [model.head, *([model.head_dist] if hasattr(model, "head_dist") else [])]
    for head in heads:
        if type(head) not in (nn.Identity, nn.Linear):
            yield f"its head is a {type(head).__name__}, not one Linear"


def _eps_reasons(model: Any) -> Iterator[str]:
    """Yield a Program has one eps for its norms and one for those of queries and keys."""
    inner = {n.eps for b in model.blocks for n in (b.attn.q_norm, b.attn.k_norm) if hasattr(n, "eps")}
    outer = {n.eps for b in model.blocks for n in (b.norm1, b.norm2)}
    outer |= {n.eps for n in (model.norm_pre, model.norm, model.fc_norm) if hasattr(n, "eps")}
    for eps in (inner, outer):
        if len(eps) > 1:
            yield f"its LayerNorms have different eps: {', '.join(map(str, sorted(eps)))}"
