"""What a checkpoint's content means: which of its state dicts to take, and the names inside without their wrapping.

Training scripts wrap a network's tensors in dicts (`model`, `state_dict`, an averaged copy beside) and in prefixes
(`module.`, `_orig_mod.`, `backbone.`). Which of two copies is taken follows what the script that writes them judges
and reports; whatever is chosen, assumed or left out is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgevit.errors import WeightsError
from edgevit.frontends.torch_file import StandIn, whole_module
from edgevit.util.limits import TENSOR_DIMENSIONS, TENSOR_NAME, WEIGHTS_DEPTH, WEIGHTS_EXPANSION, WEIGHTS_TENSORS
from edgevit.util.progress import Say
from edgevit.util.strict_json import shown

State = Mapping[str, Tensor]

PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "student", "encoder")
# Averaged copies (EMA): whether they are taken when plain ones are there too, and why.
AVERAGED: Mapping[str, tuple[bool, str]] = {
    "state_dict_ema": (True, "timm's and T2T-ViT's training scripts judge the averaged weights"),
    "model_ema": (False, "DeiT's training script judges the plain weights and only keeps the averaged ones"),
    "ema": (True, "scripts that write 'ema' evaluate it"),
    "ema_model": (True, "scripts that write 'ema_model' evaluate it"),
    "ema_state_dict": (True, "scripts that write 'ema_state_dict' evaluate it"),
    "model_ema_state_dict": (True, "scripts that write 'model_ema_state_dict' evaluate it"),
    "teacher": (True, "DINO evaluates the teacher, the average of its student"),
    "target_encoder": (True, "I-JEPA evaluates the target encoder, the average of its encoder"),
}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WRAPPERS = (*PLAIN, *AVERAGED)
PREFIXES = (*WRAPPERS, "backbone", "trunk", "vision_encoder", "image_encoder", "base_model")
# The first layer of the Vision Transformers that are known here, under the names of their sources.
ANCHORS = (
    "patch_embed.proj.weight",
    "tokens_to_token.project.weight",
    "ln_pre.weight",
    "conv_proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
)
# Those of sources whose names can stand beside other networks in one file; transformers' own tables sort out theirs.
_TOWERS = ANCHORS[:3]
_INFIXES = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BUFFERS = re.compile(r"(?:^|\.)(?:n_averaged|num_batches_tracked|position_ids)$")
# What a file may hold beside a Vision Transformer without any part in its output.
_COMPANIONS = (
    (r"mask_token$", "the mask token of pre-training"),
    (r"decoder[._]", "the decoder of pre-training"),
    (r"predictor\.", "the predictor of pre-training"),
    (r"(?:dino|ibot)_head\.|head\.(?:mlp|last_layer)\.", "the projection head of self-supervised training"),
    (r"(?:criterion|\w*loss|\w*loss_(?:fn|function))\.", "the training loss"),
)
_TEXT_TOWER = (
    r"(?:text|text_model|transformer|token_embedding|ln_final)\.|text_projection|positional_embedding$"
    r"|logit_(?:scale|bias)$"
)
_CLASSIFIERS = ("head", "classifier", "fc", "linear", "linear_head", "cls_head")
_SHOWN = 8


@dataclass(kw_only=True)
class Copies:
    """The choice between averaged and plain weights: `ema` as the user asked (None: as the source means it).

    `where` is the file, for messages; `say` is told every choice; `met` becomes true when there was one to make.
    """

    where: str
    ema: bool | None = None
    say: Say = field(default=lambda _: None)
    met: bool = False

    def choose(self, keys: Iterable[str]) -> str:
        """Return one of `keys`, all of which hold a network.

        Raises:
            WeightsError: not what was asked for, or several with nothing to choose by.
        """
        averaged = [k for k in keys if k in AVERAGED]
        plain = [k for k in keys if k not in AVERAGED]
        if len(averaged) > 1 or len(plain) > 1:
            names = ", ".join(map(repr, [*averaged, *plain]))
            raise WeightsError(f"{self.where} holds several networks: {names}; save the one to build by itself")
        if not averaged:
            return plain[0]
        self.met = True
        key, (default, reason) = averaged[0], AVERAGED[averaged[0]]
        if not plain:
            if self.ema is False:
                raise WeightsError(f"{self.where} holds only averaged weights ({key!r}); omit --no-ema")
            self.say(f"weights: took {key!r}, the averaged ones; {self.where} holds no others")
            return key
        taken, other = (key, plain[0]) if (default if self.ema is None else self.ema) else (plain[0], key)
        why = "as asked" if self.ema is not None else reason
        option = "--no-ema" if taken == key else "--ema"
        self.say(f"weights: took {taken!r} and not {other!r}: {why}; {option} takes the other")
        return taken


def unwrap(content: Any, copies: Copies) -> Mapping[Any, Any]:
    """Return the innermost mapping that holds the tensors, of a file's content.

    Raises:
        WeightsError: no tensors, a network stored as an object, or several state dicts with nothing to choose by.
    """
    for _ in range(WEIGHTS_DEPTH.value + 1):
        if not isinstance(content, Mapping):
            break
        inside = [k for k in content if k in WRAPPERS and _holds_tensors(content[k])]
        if not inside:
            break
        content = content[copies.choose(inside)]
    else:  # one inside itself is what has no end
        raise WeightsError(
            f"{copies.where} nests its dictionaries too deep, allowed for {WEIGHTS_DEPTH.said}; save model.state_dict()"
        )
    stored = [content, *(content.get(k) for k in WRAPPERS)] if isinstance(content, Mapping) else [content]
    for value in stored:
        if isinstance(value, StandIn):
            raise WeightsError(whole_module(copies.where, value.kind))
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{copies.where} holds no named tensors: got {kind}, expected a state dict")
    return content


def tensors(content: Mapping[Any, Any], where: str, most_bytes: int | None = None) -> dict[str, Tensor]:
    """Return the tensors of a state dict as float32; numbers and settings beside them are passed over.

    Raises:
        WeightsError: there are none, some are not dense, real and whole in the file, or all together would take more
            than `most_bytes`.
    """
    found = {n: v for n, v in content.items() if isinstance(v, Tensor) and isinstance(n, str)}
    if not found:
        strangers = shorten(str(n) for n in content)
        raise WeightsError(f"{where} is not a state dict: not tensors are {strangers}; save model.state_dict()")
    if len(found) > WEIGHTS_TENSORS.value:
        raise WeightsError(f"{where} holds {len(found)} tensors, allowed for {WEIGHTS_TENSORS.said}")
    state: dict[str, Tensor] = {}
    used = 0
    for name, value in found.items():
        if len(name) > TENSOR_NAME.value:
            raise WeightsError(f"{where}: a name of {len(name)} characters, allowed for {TENSOR_NAME.said}")
        if _BUFFERS.search(name):
            continue
        _check_tensor(f"{where}: {shown(name)}", value)
        used += 4 * value.numel()
        if most_bytes is not None and used > most_bytes:
            raise WeightsError(
                f"{where}: its tensors take more than {most_bytes} bytes as float32, allowed for "
                f"{WEIGHTS_EXPANSION.said}; save model.state_dict() of independent tensors"
            )
        state[name] = value.detach().float()
    return state


def _check_tensor(where: str, value: Tensor) -> None:
    """Only plain floating-point numbers, each of them in the file, have one meaning."""
    if value.is_meta:
        raise WeightsError(f"{where} is a meta tensor: the file holds its shape and none of its numbers; save them")
    if value.is_nested or value.layout is not torch.strided or value.is_complex():
        layout = "nested" if value.is_nested else value.layout
        raise WeightsError(f"{where} is {value.dtype}, {layout}; dense real tensors are expected")
    if value.dtype not in FLOATS:
        raise WeightsError(
            f"{where} holds {value.dtype}, as files of quantized models do; give the float weights, edgevit quantizes "
            "them itself"
        )
    if value.ndim > TENSOR_DIMENSIONS.value:
        raise WeightsError(f"{where} has {value.ndim} dimensions, allowed for {TENSOR_DIMENSIONS.said}")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise WeightsError(
            f"{where} repeats numbers: shape {list(value.shape)} of {value.untyped_storage().nbytes()} bytes; save it "
            "with .contiguous()"
        )


def plain_names(state: State, copies: Copies) -> dict[str, Tensor]:
    """Return a network's tensors under its own names: prefixes taken off, the averaged or plain copy chosen.

    Raises:
        WeightsError: two tensors would get one name, or tensors beside the network are not known.
    """
    state = _without_infixes(state, copies.where)
    while True:
        state = _without(state, _COMPANIONS, copies.say)
        groups = _groups(state)
        wrapping = _wrapping(groups, copies)
        if wrapping is not None:
            state = groups[wrapping]
            continue
        tower = _tower(state, groups, copies.where)
        if tower is None:
            return dict(state)
        state = groups[tower] | _beside(tower, groups, copies)


def hint(unknown: Iterable[str], *, every: bool = True) -> str:
    """What names that the model does not have look like, in words; '' where they say nothing. `every`: all are such."""
    names = list(unknown)
    if any("lora_" in n for n in names):
        return "there are LoRA adapters beside the weights: merge them first (merge_and_unload in peft)"
    foreign = [n for n in names if re.search(r"(?:^|\.)(?:encoder\.layers?\.\d+|embeddings)\.", n)]
    if foreign:
        return f"this looks like a transformers checkpoint of another model (names such as {shorten(foreign[:2])})"
    if any(re.match(r"(?:layer[1-4]|stages|features|layers)\.\d", n) for n in names):
        return f"this looks like another kind of network (names such as {shorten(names[:2])})"
    first = {n.partition(".")[0] for n in names}
    if every and len(first) == 1 and len(names) > 1:
        return f"all names begin with {next(iter(first))}."
    return ""


def shorten(names: Iterable[str]) -> str:
    """Return the first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _holds_tensors(value: Any) -> bool:
    """Return whether there is a tensor in these dictionaries inside each other, each of which is looked at once."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            if any(isinstance(v, Tensor) for v in value.values()):
                return True
            waiting.extend(value.values())
    return False


def _without_infixes(state: State, where: str) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = _INFIXES.sub("", name)
        if plain in named:
            raise WeightsError(f"{where} holds {plain!r} twice, with and without a prefix such as '_orig_mod.'")
        named[plain] = value
    return named


def _without(state: State, companions: Iterable[tuple[str, str]], say: Say) -> State:
    """Return the state without what is known to have no part in the network's output."""
    for pattern, what in companions:
        left = {n: None for n in state if re.match(pattern, n)}
        if left and len(left) < len(state):
            say(f"weights: left out {what} ({shorten(list(left)[:2])}{', ...' if len(left) > 2 else ''})")
            state = {n: v for n, v in state.items() if n not in left}
    return state


def _groups(state: State) -> dict[str, dict[str, Tensor]]:
    """Return tensors by the first part of their names, without it; those whose name has one part under ''."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        first, dot, rest = name.partition(".")
        groups.setdefault(first if dot else "", {})[rest if dot else name] = value
    return groups


def _wrapping(groups: Mapping[str, State], copies: Copies) -> str | None:
    """The prefix to take off because all names have it, or because the rest is another copy of the same network."""
    if len(groups) == 1:
        (only,) = groups
        return only if only in PREFIXES or (only and _has_anchor(groups[only], ANCHORS)) else None
    if len(groups) == 2 and set(groups) <= set(WRAPPERS) and len(set(groups) & set(AVERAGED)) == 1:
        one, two = (_bare(group) for group in groups.values())
        if one == two:
            return copies.choose(groups)
    if "module" in groups:
        others = groups.get("", {}).keys() | _joined(groups)
        both = [n for n in groups["module"] if n in others]
        if both:
            raise WeightsError(f"{copies.where} holds {both[0]!r} twice, with and without the prefix 'module.'")
    return None


def _joined(groups: Mapping[str, State]) -> set[str]:
    return {f"{first}.{rest}" for first, group in groups.items() if first for rest in group}


def _bare(names: Iterable[str]) -> set[str]:
    """Return names without the prefixes that all of them have."""
    names = set(names)
    while len(first := {n.partition(".")[0] for n in names}) == 1 and first <= set(PREFIXES):
        names = {n.partition(".")[2] for n in names}
    return names


def _has_anchor(names: Iterable[str], anchors: tuple[str, ...]) -> bool:
    return any(n in anchors or n.endswith(tuple("." + a for a in anchors)) for n in names)


def _tower(state: State, groups: Mapping[str, State], where: str) -> str | None:
    """Return the prefix under which a Vision Transformer stands beside other tensors."""
    if any(anchor in state for anchor in ANCHORS):
        return None
    found = [first for first, group in groups.items() if first and _has_anchor(group, _TOWERS)]
    if len(found) > 1:
        names = ", ".join(f"{f}." for f in found)
        raise WeightsError(f"{where} holds several networks, under {names}; save the one to build by itself")
    return found[0] if found else None


def _beside(tower: str, groups: Mapping[str, State], copies: Copies) -> dict[str, Tensor]:
    """Return what stands beside the network and belongs to it: its classifier.

    Raises:
        WeightsError: something else that is not known to have no part in the output.
    """
    rest: State = {f"{f}.{n}" if f else n: v for f, group in groups.items() if f != tower for n, v in group.items()}
    rest = _without({**rest, "": torch.empty(0)}, ((_TEXT_TOWER, "the text tower"),), copies.say)
    rest = {n: v for n, v in rest.items() if n}
    if tower == "trunk" and set(rest) == {"head.proj.weight"}:  # open_clip around timm's towers
        return {"head.weight": rest["head.proj.weight"]}
    own = {n.partition(".")[0] for n in groups[tower]}
    for name in _CLASSIFIERS:
        weight = rest.get(f"{name}.weight")
        fits = weight is not None and weight.ndim == 2 and set(rest) <= {f"{name}.weight", f"{name}.bias"}
        if fits and "head" not in own:
            copies.say(f"weights: took {name}.weight, which stands beside {tower}., as the classifier of its output")
            return {f"head.{n.partition('.')[2]}": v for n, v in rest.items()}
    if rest:
        raise WeightsError(
            f"{copies.where} holds a network under {tower}. and beside it {shorten(rest)}: what these compute is not "
            f"known; save the network alone, or the whole as one of timm's models"
        )
    return {}
