"""Modules for transformers' Vision Transformers: timm's classes, built as a config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgevit.errors import UnsupportedModelError
from edgevit.frontends.hub_folder import HubFolder
from edgevit.frontends.timm_import import timm
from edgevit.util.strict_json import shown

SEED = 0
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Where config.json leaves a value away it is transformers' default, which differs between model types.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "vit": {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "intermediate_size": 3072, "patch_size": 16},
    "vit_msn": {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "intermediate_size": 3072, "patch_size": 16},
    "vit_mae": {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "intermediate_size": 3072, "patch_size": 16},
    "deit": {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "intermediate_size": 3072, "patch_size": 16},
    "dinov2": {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "mlp_ratio": 4, "patch_size": 14},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "mlp_ratio": 4, "patch_size": 14},
    "clip_vision_model": {
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
        "intermediate_size": 3072,
        "patch_size": 32,
    },
}


def build(hub: HubFolder, state: Mapping[str, Tensor], options: Mapping[str, Any], *, meta: bool) -> nn.Module:
    """Return the module of `hub`'s config; `options` are timm's (`img_size`, `num_classes`, `global_pool`, ...).

    `state` has timm's names. Without memory for the weights where `meta` is true.

    Raises:
        UnsupportedModelError: the config asks for what a Program cannot be.
    """
    kind = "clip_vision_model" if hub.kind == "clip" else hub.kind
    config: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
    config |= _DEFAULTS[kind]
    config |= {key: value for key, value in hub.config.items() if value is not None or key not in config}
    if config.get("use_swiglu_ffn"):
        raise UnsupportedModelError(
            f"{hub.name} is not supported: its FFN is gated (SwiGLU); `edgevit models` lists what is supported"
        )
    activation, dim = config["hidden_act"], config["hidden_size"]
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UnsupportedModelError(f"{hub.name} is not supported: it has the activation {shown(activation)}")
    if not dim:
        raise UnsupportedModelError(f"{hub.name} is not supported: its hidden_size is {dim}, expected 1 or more")
    neurons = int(dim * config["mlp_ratio"]) if config.get("mlp_ratio") is not None else config["intermediate_size"]
    arguments: dict[str, Any] = {
        "img_size": config["image_size"],
        "patch_size": config["patch_size"],
        "in_chans": config.get("num_channels", 3),
        "embed_dim": dim,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": (neurons + 0.5) / dim,  # timm takes the whole part of dim * mlp_ratio
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "norm_layer": partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
        "act_layer": _ACTIVATIONS[activation],
        "num_classes": 0,
        **_traits(kind, state),
        **options,
    }
    distilled = kind == "deit" and "head_dist.weight" in state
    cls = timm.models.deit.VisionTransformerDistilled if distilled else timm.models.vision_transformer.VisionTransformer
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
            torch.manual_seed(SEED)
            model: nn.Module = cls(**arguments)
    except Exception as error:  # any value may stand in a config.json; none may end in a trace
        raise UnsupportedModelError(f"{hub.name} cannot be built as its config.json says: {error}") from error
    return model.eval()


def _traits(kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    if kind == "clip_vision_model":
        return {"pre_norm": True}
    if kind.startswith("dinov2"):
        registers = state["reg_token"].shape[1] if "reg_token" in state else 0
        return {"init_values": 1e-5, "reg_tokens": registers, "no_embed_class": bool(registers)}
    if kind == "deit" and "reg_token" in state:  # a distillation token that no head reads
        return {"reg_tokens": 1}
    return {}
