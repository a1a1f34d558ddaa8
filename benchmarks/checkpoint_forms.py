"""The forms in which people have checkpoints, each made from a timm module by hand: the inverse of what edgevit reads.

A form writes files into a folder and says what must come out: the module whose outputs a Program of them has to give,
or a part of the words with which they must be refused.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgevit.frontends.timm_import import timm

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model in its torch form: timm's `name`, the options that make it small, and its weights."""

    title: str
    name: str
    options: Mapping[str, Any]
    module: nn.Module

    def make(self, **more: Any) -> nn.Module:
        """A module of this name with other options, its weights as they come."""
        module: nn.Module = timm.create_model(self.name, **{**self.options, **more})
        return module.eval()

    def state(self) -> State:
        return {n: v.detach().clone() for n, v in self.module.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint: what to give to edgevit (`name` None: the folder states the model), and what must come out."""

    path: Path
    name: str | None
    module: nn.Module | None = None
    refused: str = ""


Form = Callable[[Subject, Path], Made | None]


def _with(subject: Subject, state: State, **more: Any) -> nn.Module:
    module = subject.make(**more)
    module.load_state_dict(state)
    return module


def _stated(subject: Subject, folder: Path) -> str | None:
    """The name to give; for a model with options a config.json in timm's form stands beside the weights instead."""
    if not subject.options:
        return subject.name
    config = {"architecture": subject.name, "model_args": dict(subject.options), "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return None


def _torch(change: Callable[[State], Any], file: str = "weights.pth") -> Form:
    """A torch file of what `change` makes of the weights; the model that comes out has them unchanged."""

    def form(subject: Subject, folder: Path) -> Made:
        torch.save(change(subject.state()), folder / file)
        return Made(path=folder / file, name=_stated(subject, folder), module=subject.module)

    return form


def _other(state: State) -> State:
    """Other weights of the same names: taking them shows in every output."""
    return {n: v * 0.5 for n, v in state.items()}


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + n: v for n, v in state.items()}


def _backbone(state: State) -> State:
    return {(n if n.startswith("head.") else f"backbone.{n}"): v for n, v in state.items()}


def _dino(state: State) -> State:
    head = {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_g": torch.ones(4, 1)}
    return _prefixed("backbone.", state) | head


def _safetensors(subject: Subject, folder: Path) -> Made:
    save_file(subject.state(), folder / "model.safetensors")
    return Made(path=folder / "model.safetensors", name=_stated(subject, folder), module=subject.module)


def _half(subject: Subject, folder: Path) -> Made:
    half = {n: v.bfloat16() for n, v in subject.state().items()}
    save_file(half, folder / "model.safetensors")
    rounded = _with(subject, {n: v.float() for n, v in half.items()})
    return Made(path=folder / "model.safetensors", name=_stated(subject, folder), module=rounded)


def _shards(subject: Subject, folder: Path) -> Made:
    state = subject.state()
    names = sorted(state)
    files = {n: f"model-{1 + 2 * i // len(names):05d}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return Made(path=folder, name=_stated(subject, folder), module=subject.module)


def _headless(subject: Subject, folder: Path) -> Made:
    state = {n: v for n, v in subject.state().items() if not n.startswith("head")}
    save_file(state, folder / "model.safetensors")
    pooled = _with(subject, state, num_classes=0)
    return Made(path=folder / "model.safetensors", name=_stated(subject, folder), module=pooled)


def _mae(subject: Subject, folder: Path) -> Made | None:
    if hasattr(subject.module, "head_dist") or getattr(subject.module, "reg_token", None) is not None:
        return None
    state = {re.sub(r"^norm\.", "fc_norm.", n): v for n, v in subject.state().items()}
    torch.save({"model": state}, folder / "weights.pth")
    return Made(
        path=folder / "weights.pth",
        name=_stated(subject, folder),
        module=_with(subject, state, global_pool="avg", fc_norm=True),
    )


def _resized(subject: Subject, folder: Path) -> Made:
    """Fine-tuned at another size: 4 patches more in height and width, and nothing but the weights says so."""
    larger: Any = copy.deepcopy(subject.module)
    side = larger.patch_embed.img_size[0] + 4 * larger.patch_embed.patch_size[0]
    larger.set_input_size((side, side))
    save_file({n: v.contiguous() for n, v in larger.state_dict().items()}, folder / "model.safetensors")
    return Made(path=folder / "model.safetensors", name=_stated(subject, folder), module=larger)


def _chunks(state: State) -> State:
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", n): v for n, v in state.items()}


def _gammas(state: State) -> State:
    return {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", n): v for n, v in state.items()}


def _refused(words: str, content: Callable[[Subject], Any], file: str = "weights.pth") -> Form:
    def form(subject: Subject, folder: Path) -> Made:
        torch.save(content(subject), folder / file)
        return Made(path=folder / file, name=_stated(subject, folder), refused=words)

    return form


def _pre_logits(subject: Subject) -> State:
    dim = subject.state()["norm.weight"].shape[0]
    return subject.state() | {"pre_logits.fc.weight": torch.eye(dim), "pre_logits.fc.bias": torch.zeros(dim)}


def _double_patch(subject: Subject) -> State:
    state = subject.state()
    weight = state["patch_embed.proj.weight"]
    return state | {"patch_embed.proj.weight": weight.repeat_interleave(2, 2).repeat_interleave(2, 3)}


def _quantized(subject: Subject) -> State:
    return {n: (v * 100).to(torch.int8) if v.ndim == 2 else v for n, v in subject.state().items()}


def _script(subject: Subject, folder: Path) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated; files of it live on
        jit: Any = torch.jit
        jit.save(jit.script(nn.Linear(2, 2)), folder / "weights.pt")
    return Made(path=folder / "weights.pt", name=_stated(subject, folder), refused="TorchScript")


def _bert(subject: Subject) -> State:
    names = ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight")
    return {f"bert.{n}": torch.ones(2, 2) for n in names}


# Names of other sources, written by hand as the inverse of edgevit's tables.

_HF_NAMES = (
    (r"cls_token", "embeddings.cls_token"),
    (r"dist_token", "embeddings.distillation_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"norm\.(\w+)", r"layernorm.\1"),
)
_HF_PLAIN = (
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"encoder.layer.\1.output.dense.\2"),
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(\w+)", r"encoder.layer.\1.layernorm_after.\2"),
)
_HF_DINO = (
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"encoder.layer.\1.mlp.fc\2.\3"),
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"encoder.layer.\1.norm\2.\3"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
)
_HF_CLIP = (
    (r"cls_token", "vision_model.embeddings.class_embedding"),
    (r"pos_embed", "vision_model.embeddings.position_embedding.weight"),
    (r"patch_embed\.proj\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"norm_pre\.(\w+)", r"vision_model.pre_layrnorm.\1"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"vision_model.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"vision_model.encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"vision_model.encoder.layers.\1.mlp.fc\2.\3"),
    (r"norm\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"head\.weight", "visual_projection.weight"),
)
_OPENAI = (
    (r"cls_token", "visual.class_embedding"),
    (r"pos_embed", "visual.positional_embedding"),
    (r"patch_embed\.proj\.weight", "visual.conv1.weight"),
    (r"norm_pre\.(\w+)", r"visual.ln_pre.\1"),
    (r"norm\.(\w+)", r"visual.ln_post.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"visual.transformer.resblocks.\1.attn.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"visual.transformer.resblocks.\1.attn.out_proj.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"visual.transformer.resblocks.\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"visual.transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"visual.transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"head\.weight", "visual.proj"),
)
_TORCHVISION = (
    (r"cls_token", "class_token"),
    (r"pos_embed", "encoder.pos_embedding"),
    (r"patch_embed\.proj\.(\w+)", r"conv_proj.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(\w+)", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layers.encoder_layer_\1.self_attention.out_proj.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"encoder.layers.encoder_layer_\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"encoder.layers.encoder_layer_\1.mlp.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"encoder.layers.encoder_layer_\1.mlp.3.\2"),
    (r"norm\.(\w+)", r"encoder.ln.\1"),
    (r"head\.(\w+)", r"heads.head.\1"),
)


def _renamed(state: State, names: tuple[tuple[str, str], ...]) -> State:
    """The tensors under the first name that fits; every one needs one."""
    return {next(m.expand(t) for p, t in names if (m := re.fullmatch(p, n))): v for n, v in state.items()}


def _split_qkv(state: State, layer: str, parts: tuple[str, str, str]) -> State:
    """Queries, keys and values of every block apart, under `layer` (with the block's number) and their names."""
    split: State = {}
    for name, value in state.items():
        found = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name)
        if found:
            for part, piece in zip(parts, value.chunk(3), strict=True):
                split[f"{layer.format(found[1])}.{part}.{found[2]}"] = piece.contiguous()
    return split


def _without_qkv(state: State) -> State:
    return {n: v for n, v in state.items() if ".attn.qkv." not in n}


def transformers_state(subject: Subject) -> tuple[State, dict[str, Any]]:
    """The weights under the names of transformers, and the config.json that goes with them."""
    module: Any = subject.module
    state = subject.state()
    block = module.blocks[0]
    config: dict[str, Any] = {
        "hidden_size": module.embed_dim,
        "num_hidden_layers": len(module.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "layer_norm_eps": block.norm1.eps,
        "image_size": module.patch_embed.img_size[0],
        "patch_size": module.patch_embed.patch_size[0],
        "hidden_act": "gelu",
    }
    query = ("query", "key", "value")
    if isinstance(module.norm_pre, nn.LayerNorm):
        config |= {"model_type": "clip_vision_model", "hidden_act": "quick_gelu"}
        config["hidden_act"] = "quick_gelu" if "quick" in type(block.mlp.act).__name__.lower() else "gelu"
        state.pop("head.bias", None)
        named = _renamed(_without_qkv(state), _HF_CLIP)
        for name in ("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"):
            named[name] = named[name].reshape(-1, module.embed_dim).squeeze(0)
        layer = "vision_model.encoder.layers.{}.self_attn"
        return named | _split_qkv(state, layer, ("q_proj", "k_proj", "v_proj")), config
    names: tuple[tuple[str, str], ...] = (*_HF_NAMES, *_HF_PLAIN)
    prefix, kind = "vit.", "vit"
    registers = state.pop("reg_token", None)
    if "blocks.0.ls1.gamma" in state:
        prefix, kind, names = "", "dinov2", (*_HF_NAMES, *_HF_DINO)
        config["mlp_ratio"] = config.pop("intermediate_size") / module.embed_dim
        if registers is not None:
            kind = "dinov2_with_registers"
            state["pos_embed"] = torch.cat([torch.ones(1, 1, module.embed_dim), state["pos_embed"]], dim=1)
            state["cls_token"] = state["cls_token"] - 1
    elif hasattr(module, "head_dist"):
        prefix, kind = "deit.", "deit"
    heads = {n: state.pop(n) for n in list(state) if n.startswith("head")}
    named = _renamed(_without_qkv(state), names) | _split_qkv(state, "encoder.layer.{}.attention.attention", query)
    named = _prefixed(prefix, named)
    if registers is not None:
        named["embeddings.register_tokens"] = registers
    first, second = ("cls_classifier", "distillation_classifier") if kind == "deit" else ("classifier", "")
    for name, value in heads.items():
        named[name.replace("head_dist", second) if "dist" in name else name.replace("head", first)] = value
    return named, config | {"model_type": kind}


def _transformers(subject: Subject, folder: Path) -> Made:
    state, config = transformers_state(subject)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    size = config["image_size"]
    preprocessor = {
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return Made(path=folder, name=None, module=subject.module)


def _transformers_file(subject: Subject, folder: Path) -> Made | None:
    if subject.options:  # a small model has no name to give
        return None
    torch.save(transformers_state(subject)[0], folder / "pytorch_model.bin")
    return Made(path=folder / "pytorch_model.bin", name=subject.name, module=subject.module)


def _plain_vit(subject: Subject) -> bool:
    module: Any = subject.module
    plain = type(module) is timm.models.vision_transformer.VisionTransformer and module.num_prefix_tokens == 1
    return plain and not isinstance(module.norm_pre, nn.LayerNorm) and not hasattr(module.blocks[0].ls1, "gamma")


def _torchvision(subject: Subject, folder: Path) -> Made | None:
    if not _plain_vit(subject):
        return None
    torch.save(_renamed(subject.state(), _TORCHVISION), folder / "vit.pth")
    return Made(path=folder / "vit.pth", name=_stated(subject, folder), module=subject.module)


def _openai(subject: Subject, folder: Path) -> Made | None:
    module: Any = subject.module
    if not isinstance(module.norm_pre, nn.LayerNorm):
        return None
    state = subject.state()
    state.pop("head.bias")
    named = _renamed(state, _OPENAI)
    named["visual.class_embedding"] = named["visual.class_embedding"].reshape(-1)
    named["visual.positional_embedding"] = named["visual.positional_embedding"][0]
    named["visual.proj"] = named["visual.proj"].T.contiguous()
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(4), "positional_embedding": torch.ones(3, 4)}
    torch.save(named | text | {"logit_scale": torch.tensor(1.0)}, folder / "clip.pt")
    return Made(path=folder / "clip.pt", name=_stated(subject, folder), module=module)


def jax_arrays(subject: Subject) -> dict[str, np.ndarray]:
    """The weights as the original JAX release stores them."""
    module: Any = subject.module
    dim, heads = module.embed_dim, module.blocks[0].attn.num_heads
    state = {n: v.numpy() for n, v in subject.state().items()}
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(module.blocks)):
        block, source = f"Transformer/encoderblock_{index}/", f"blocks.{index}."
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{block}{theirs}/scale"] = state[f"{source}{ours}.weight"]
            arrays[f"{block}{theirs}/bias"] = state[f"{source}{ours}.bias"]
        attention = f"{block}MultiHeadDotProductAttention_1/"
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * dim, (part + 1) * dim)
            kernel = state[f"{source}attn.qkv.weight"][rows].T
            arrays[f"{attention}{name}/kernel"] = kernel.reshape(dim, heads, -1)
            arrays[f"{attention}{name}/bias"] = state[f"{source}attn.qkv.bias"][rows].reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[f"{source}attn.proj.weight"].T.reshape(heads, -1, dim)
        arrays[f"{attention}out/bias"] = state[f"{source}attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{block}MlpBlock_3/Dense_{layer}/"
            arrays[f"{dense}kernel"] = state[f"{source}mlp.fc{layer + 1}.weight"].T
            arrays[f"{dense}bias"] = state[f"{source}mlp.fc{layer + 1}.bias"]
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}


def _jax(subject: Subject, folder: Path) -> Made | None:
    if not _plain_vit(subject):
        return None
    np.savez(folder / "weights.npz", **jax_arrays(subject))  # type: ignore[arg-type]
    return Made(path=folder / "weights.npz", name=_stated(subject, folder), module=subject.module)


_ARGS = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(72.1)}
FORMS: Mapping[str, Form] = {
    "safetensors": _safetensors,
    "bfloat16": _half,
    "torch, state_dict, arguments and numpy scalars beside": _torch(lambda s: {"state_dict": s, **_ARGS}),
    "`net`, suffix .PTH": _torch(lambda s: {"net": s, "acc": 99.1}, "weights.PTH"),
    "DeiT's `model` and `model_ema`": _torch(lambda s: {"model": s, "model_ema": _other(s), **_ARGS}),
    "timm's `state_dict` and `state_dict_ema`": _torch(
        lambda s: {"state_dict": _other(s), "state_dict_ema": _prefixed("module.", s)}
    ),
    "`model` and `ema`": _torch(lambda s: {"model": _other(s), "ema": {"module": s, "updates": 9}}),
    "DINO's student and teacher, with heads": _torch(
        lambda s: {"student": _prefixed("module.", _dino(_other(s))), "teacher": _dino(s)}
    ),
    "data-parallel and compiled (`module._orig_mod.`)": _torch(lambda s: _prefixed("module._orig_mod.", s)),
    "torch's AveragedModel": _torch(lambda s: {"n_averaged": torch.tensor(7), **_prefixed("module.", s)}),
    "Lightning .ckpt": _torch(
        lambda s: {"state_dict": _prefixed("model.", s), "hyper_parameters": {"lr": 1}, "callbacks": {}}, "last.ckpt"
    ),
    "`backbone.` with the classifier beside": _torch(_backbone),
    "shards with an index, in a folder": _shards,
    "chunks of blocks (DINOv2)": _torch(_chunks),
    "LayerScale as gamma_1, gamma_2": _torch(_gammas),
    "without a classifier": _headless,
    "fc_norm (MAE, mean pooling)": _mae,
    "fine-tuned at another size": _resized,
    "transformers' folder": _transformers,
    "transformers' names, one file": _transformers_file,
    "torchvision's names": _torchvision,
    "OpenAI's CLIP names, both towers": _openai,
    "JAX release, .npz": _jax,
    "pre_logits": _refused("representation layer", _pre_logits),
    "another patch size": _refused("the weights have patches of", _double_patch),
    "int8": _refused("give the float weights", _quantized),
    "LoRA adapters": _refused(
        "LoRA adapters", lambda s: {f"base.{n}.lora_A.weight": v for n, v in s.state().items() if v.ndim == 2}
    ),
    "another transformers model": _refused("transformers checkpoint of another model", _bert),
    "whole module": _refused("holds an object of type timm.models.", lambda s: s.module),
    "TorchScript": _script,
}
