from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevit.errors import WeightsError
from edgevit.frontends.naming import (
    AVERAGED,
    PREFIXES,
    Copies,
    hint,
    plain_names,
    tensors,
    unwrap,
)

STATE = {
    "cls_token": torch.ones(1, 1, 2),
    "patch_embed.proj.weight": torch.arange(4.0),
    "blocks.0.attn.qkv.weight": torch.arange(3.0),
    "head.weight": torch.arange(6.0).reshape(3, 2),
    "head.bias": torch.arange(3.0),
}
OTHER = {n: v + 1 for n, v in STATE.items()}


def read(content: Any, ema: bool | None = None) -> tuple[dict[str, torch.Tensor], list[str]]:
    said: list[str] = []
    copies = Copies(where="w.pth", ema=ema, say=said.append)
    return plain_names(tensors(unwrap(content, copies), "w.pth"), copies), said


def same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[n], v) for n, v in expected.items())


@given(
    prefixes=st.lists(st.sampled_from([*PREFIXES, "_orig_mod", "some_wrapper"]), max_size=5),
    wrappers=st.lists(st.sampled_from(["state_dict", "model", "net", "ema"]), max_size=3),
)
def test_wrappers_and_prefixes_nested_in_any_order_load_the_same(prefixes: list[str], wrappers: list[str]) -> None:
    content: Any = {"".join(f"{p}." for p in prefixes) + n: v for n, v in STATE.items()}
    for wrapper in wrappers:
        content = {wrapper: content, "epoch": 3}
    assert same(read(content)[0], STATE)


@pytest.mark.parametrize(
    ("averaged", "plain", "default"),
    [
        ("state_dict_ema", "state_dict", "averaged"),
        ("model_ema", "model", "plain"),
        ("ema", "model", "averaged"),
        ("teacher", "student", "averaged"),
        ("target_encoder", "encoder", "averaged"),
    ],
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_of_two_copies_the_one_that_the_source_judges_is_taken_and_named(
    averaged: str, plain: str, default: str, prefixed: bool
) -> None:
    content: Any = {averaged: STATE, plain: OTHER}
    if prefixed:
        content = {f"{key}.{n}": v for key, state in content.items() for n, v in state.items()}
    for ema, taken in ((None, default), (True, "averaged"), (False, "plain")):
        state, said = read(content, ema)
        assert same(state, STATE if taken == "averaged" else OTHER)
        key, other = (averaged, plain) if taken == "averaged" else (plain, averaged)
        assert len(said) == 1 and f"took {key!r} and not {other!r}" in said[0]
        assert ("--no-ema" if taken == "averaged" else "--ema") in said[0]


def test_one_copy_alone_is_taken_and_an_averaged_one_is_named() -> None:
    state, said = read({"model_ema": STATE})
    assert same(state, STATE) and "the averaged ones" in said[0]
    with pytest.raises(WeightsError, match="only averaged weights.*--no-ema"):
        read({"model_ema": STATE}, ema=False)


def test_several_networks_are_not_chosen_from() -> None:
    with pytest.raises(WeightsError, match="several networks: 'model', 'net'"):
        read({"model": STATE, "net": OTHER})
    both = {f"{key}.{n}": v for key in ("left", "right") for n, v in STATE.items()}
    with pytest.raises(WeightsError, match=r"under left\., right\."):
        read(both)


def test_a_classifier_beside_the_backbone_is_its_own() -> None:
    content = {(n if n.startswith("head") else f"backbone.{n}").replace("head", "fc"): v for n, v in STATE.items()}
    state, said = read(content)
    assert same(state, STATE)
    assert "took fc.weight" in said[0]


def test_unknown_tensors_beside_the_backbone_are_refused() -> None:
    content = {f"backbone.{n}": v for n, v in STATE.items()} | {"neck.weight": torch.ones(2, 2)}
    with pytest.raises(WeightsError, match=r"under backbone\. and beside it neck.weight"):
        read(content)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mask_token", "mask token"),
        ("decoder_blocks.0.norm1.weight", "decoder"),
        ("criterion.weight", "training loss"),
        ("dino_loss.center", "training loss"),
    ],
)
def test_what_has_no_part_in_the_output_is_left_out_and_named(name: str, what: str) -> None:
    state, said = read({**STATE, name: torch.ones(2)})
    assert same(state, STATE)
    assert what in said[0] and name in said[0]


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(WeightsError, match="twice"):
        read({**STATE, "module.cls_token": torch.ones(1)})
    with pytest.raises(WeightsError, match="twice"):
        read({**STATE, "_orig_mod.cls_token": torch.ones(1)})


def test_wholes_are_no_weights() -> None:
    with pytest.raises(WeightsError, match=r"torch.int8.*give the float weights"):
        read({**STATE, "head.weight": torch.ones(2, 2, dtype=torch.int8)})
    assert same(read({**STATE, "embeddings.position_ids": torch.arange(4)})[0], STATE)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.lora_A.weight", "a.weight"), "LoRA adapters"),
        (("bert.encoder.layer.0.output.dense.weight", "x"), "transformers checkpoint of another model"),
        (("layer1.0.conv1.weight", "conv1.weight"), "another kind of network"),
        (("thing.a", "thing.b"), "all names begin with thing."),
        (("a", "b"), ""),
    ],
)
def test_what_stays_unknown_is_named(names: tuple[str, ...], words: str) -> None:
    assert words in hint(names) and bool(hint(names)) == bool(words)


def test_every_averaged_copy_states_its_reason() -> None:
    assert all(reason for _, reason in AVERAGED.values())
