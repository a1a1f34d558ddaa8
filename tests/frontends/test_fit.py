from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgevit.errors import WeightsError
from edgevit.frontends.fit import fit, timm_forms
from edgevit.frontends.timm_import import timm


def create(options: dict[str, Any], meta: bool) -> nn.Module:
    with torch.device("meta" if meta else "cpu"):
        module: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", **{"embed_dim": 16, "num_heads": 2, "depth": 1, "img_size": 32, **options}
        )
    return module.eval()


def read(state: dict[str, torch.Tensor], **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return fit(state, create, "'vit_tiny_patch16_224'", say=said.append, **options), said


def test_a_representation_layer_is_refused() -> None:
    """It is a Linear and tanh before the classifier; dropping it is another model."""
    state = create({}, False).state_dict()
    with pytest.raises(WeightsError, match="representation layer .*pre_logits.* no place for"):
        read(state | {"pre_logits.fc.weight": torch.eye(16), "pre_logits.fc.bias": torch.zeros(16)})


def test_another_patch_size_is_refused_with_names_that_have_it() -> None:
    state = create({"patch_size": 32, "img_size": 64}, False).state_dict()
    with pytest.raises(WeightsError, match=r"patches of 32 x 32 pixels, .* has 16 x 16; .* such as vit_.*patch32"):
        read(state)


def test_fc_norm_says_that_the_mean_is_pooled() -> None:
    module, said = read(create({"global_pool": "avg"}, False).state_dict())
    assert module.global_pool == "avg" and isinstance(module.fc_norm, nn.LayerNorm)
    assert "pools the mean" in said[0]


def test_without_a_classifier_the_pooled_row_comes_out() -> None:
    module, said = read(create({"num_classes": 0}, False).state_dict())
    assert module.num_classes == 0 and "no classifier" in said[0]


def test_weights_of_the_model_itself_are_taken_without_a_word() -> None:
    state = create({"num_classes": 3}, False).state_dict()
    module, said = read(state)
    assert said == []
    assert all(torch.equal(v, state[n]) for n, v in module.state_dict().items())


@pytest.mark.parametrize("tokens", [5, 8])
def test_a_grid_that_is_none_is_refused(tokens: int) -> None:
    state = create({}, False).state_dict() | {"pos_embed": torch.zeros(1, 1 + tokens, 16)}
    with pytest.raises(WeightsError, match=f"has {tokens} rows"):
        read(state)


def test_upstream_forms_are_the_same_numbers() -> None:
    position = torch.randn(1, 5, 4)
    state = {
        "blocks.0.3.norm1.weight": torch.ones(4),
        "blocks.1.gamma_2": torch.ones(4),
        "register_tokens": torch.ones(1, 2, 4),
        "cls_token": torch.ones(1, 1, 4),
        "pos_embed": position,
        "patch_embed.proj.weight": torch.arange(4 * 3 * 4.0).reshape(4, 12),
        "head.weight": torch.ones(3, 4),
    }
    found = timm_forms(state, "x")
    assert {"blocks.3.norm1.weight", "blocks.1.ls2.gamma", "reg_token"} < set(found)
    assert torch.equal(found["cls_token"], 1 + position[:, :1]) and torch.equal(found["pos_embed"], position[:, 1:])
    assert found["patch_embed.proj.weight"].shape == (4, 3, 2, 2)
    assert torch.equal(found["head.bias"], torch.zeros(3))
    with pytest.raises(WeightsError, match=r"'blocks.1.norm1.weight' twice"):
        timm_forms({"blocks.0.1.norm1.weight": torch.ones(1), "blocks.1.1.norm1.weight": torch.ones(1)}, "x")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cls_token", ()),
        ("pos_embed", (5, 16)),
        ("reg_token", (16,)),
        ("pos_embed", (1, 5, 8)),
        ("cls_token", (0, 1, 16)),
    ],
)
def test_tokens_of_another_shape_are_refused_before_they_are_added(name: str, shape: tuple[int, ...]) -> None:
    rows = {"cls_token": 1, "pos_embed": 5, "register_tokens": 2}
    state = {token: torch.zeros(1, count, 16) for token, count in rows.items()}
    with pytest.raises(WeightsError, match="expected .1, rows, dim. of one dim"):
        timm_forms({**state, name: torch.zeros(shape)}, "x")


def test_a_stem_without_pixels_is_told_by_its_shape() -> None:
    assert timm_forms({"patch_embed.proj.weight": torch.zeros(4, 0)}, "x")["patch_embed.proj.weight"].shape == (4, 0)
