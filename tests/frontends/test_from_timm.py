from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgevit.errors import UnknownModelError, UnsupportedModelError, WeightsError
from edgevit.frontends.from_timm import from_timm
from edgevit.frontends.refusal import refusal
from edgevit.frontends.timm_import import timm
from edgevit.frontends.timm_module import image_spec, program_from_module
from edgevit.program.program import Program, load_program, save_program
from edgevit.torch_form.vit import Vit, normalise
from tests.frontends.real import DATA, enliven, needs_data, outputs, real_images

torch.set_num_threads(1)
# Both sides are float32 and sum in different orders: 1e-5 for outputs up to 1, in proportion for larger ones. timm's
# float32 logits are themselves 1.8e-5 from its float64 logits on real images; the real models are compared in both.
TOLERANCE = 1e-5

REAL = ("deit_tiny_patch16_224.fb_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")

# What the name stands for -> timm name, options of the build. Two blocks of each are enough: they are alike.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "distilled pooled": ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
    "layer scale, no_embed_class": ("deit3_small_patch16_224", {}),
    "register tokens": ("vit_wee_patch16_reg1_gap_256", {}),
    "register tokens, layer scale, pooled row": ("vit_small_patch14_reg4_dinov2", {"img_size": 224}),
    "mean pooling": ("vit_medium_patch16_gap_240", {}),
    "mean pooling, no classifier": ("vit_medium_patch16_gap_240", {"num_classes": 0}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "pre-norm stem, no stem bias": ("vit_base_patch32_clip_224", {"embed_dim": 192, "num_heads": 3}),
    "quick gelu": ("vit_base_patch32_clip_quickgelu_224", {"embed_dim": 192, "num_heads": 3}),
    "no qkv bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "no proj bias": ("vit_tiny_patch16_224", {"proj_bias": False}),
    "no position embedding": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "no final norm": ("vit_tiny_patch16_224", {"final_norm": False}),
    "norm behind the class token": ("vit_tiny_patch16_224", {"fc_norm": True}),
    "mean pooling, norm before": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "non-square": ("vit_tiny_patch16_224", {"img_size": (96, 160)}),
    "dynamic image size": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "img_size": (160, 96)}),
    "silu": ("vit_tiny_patch16_224", {"act_layer": "silu"}),
    "gelu tanh": ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}),
    "relu": ("vit_tiny_patch16_224", {"act_layer": "relu"}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "post-norm": ("vit_base_patch16_rpn_224", {}, "ResPostBlock"),
    "parallel": ("vit_pwee_patch16_reg1_gap_256", {}, "in parallel"),
    "parallel branches": ("vit_small_patch16_18x2_224", {}, "several branches in parallel"),
    "hybrid stem": ("vit_tiny_r_s16_p8_224", {}, "HybridEmbed"),
    "relative position": ("vit_relpos_small_patch16_224", {}, "relative position"),
    "rope": ("vit_small_patch16_rope_224", {}, "RoPE"),
    "map pooling": ("vit_base_patch16_siglip_224", {}, "pools tokens by attention"),
    "max pooling": ("vit_tiny_patch16_224", {"global_pool": "max"}, "pooling is 'max'"),
    "no pooling": ("vit_tiny_patch16_224", {"global_pool": ""}, "pooling is 'none'"),
    "prefix in the mean": (
        "vit_tiny_patch16_224",
        {"global_pool": "avg", "pool_include_prefix": True},
        "prefix tokens",
    ),
    "differential attention": ("vit_dwee_patch16_reg1_gap_256", {}, "DiffAttention"),
    "rms norm": ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "RmsNorm"),
    "swiglu": ("vit_giant_patch14_dinov2", {"embed_dim": 192, "num_heads": 3}, "SwiGLU"),
    "norm before proj": ("vit_tiny_patch16_224", {"scale_attn_norm": True}, "inside the attention branch"),
    "norm before fc2": ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "inside the FFN branch"),
    "norm of patches": ("vit_tiny_patch16_224", {"embed_norm_layer": "layernorm"}, "before the position embedding"),
    "grey images": ("vit_tiny_patch16_224", {"in_chans": 1}, "reads 1 channels"),
    "long patches": ("vit_tiny_patch16_224", {"patch_size": (16, 8)}, "not square"),
    "odd size": ("vit_tiny_patch16_224", {"img_size": 230}, "give the image size 224 x 224"),
    "activation": ("vit_tiny_patch16_224", {"act_layer": "mish"}, "Mish"),
    "no blocks": ("vit_tiny_patch16_224", {"depth": 0}, "no blocks"),
    "another kind": ("resnet18", {}, "is a ResNet"),
}


def assert_same(expected: np.ndarray, got: np.ndarray) -> None:
    assert expected.shape == got.shape
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    assert float(np.abs(expected - got).max()) <= limit


def images_for(program: Program, count: int = 2) -> torch.Tensor:
    return normalise(program.spec, real_images(count, program.spec.image.height, program.spec.image.width))


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_weights_give_timm_outputs_on_real_images(name: str, tmp_path: Path) -> None:
    assert DATA is not None
    weights = DATA / f"{name}.safetensors"
    program = from_timm(name, weights=weights)
    reference = timm.create_model(name)
    reference.load_state_dict(load_file(weights))
    images = images_for(program, 8)
    expected = outputs(reference.eval(), images)
    assert_same(expected, outputs(Vit(program), images))
    save_program(program, tmp_path / "program")
    again = load_program(tmp_path / "program")
    assert again.spec == program.spec
    assert all(np.array_equal(again.weights[n], a) for n, a in program.weights.items())
    # In float64 the order of sums does not count; folding tokens and positions rounds to float32 once.
    exact = np.abs(outputs(reference.double(), images.double()) - outputs(Vit(again).double(), images.double())).max()
    assert exact < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_timm_outputs(kind: str) -> None:
    name, options = KINDS[kind]
    model = enliven(timm.create_model(name, depth=2, **options))
    program = program_from_module(model, name)
    images = images_for(program)
    expected = outputs(model, images)
    assert_same(expected, outputs(Vit(program), images))
    assert np.abs(expected[0] - expected[1]).max() > 0.01, "the outputs do not depend on the image"


@pytest.mark.parametrize("kind", ["distilled", "register tokens, layer scale, pooled row", "mean pooling", "qk-norm"])
def test_every_array_matters(kind: str) -> None:
    """A comparison of outputs can only notice an array that changes them."""
    name, options = KINDS[kind]
    model = enliven(timm.create_model(name, depth=1, **{**options, "img_size": 28 if "14_" in name else 32}))
    program = program_from_module(model, name)
    images = images_for(program)
    whole = outputs(Vit(program), images)
    # A key bias adds the same to all scores of a query, and softmax takes it out again.
    for array, value in program.weights.items():
        if array.endswith("k_norm.bias") or value.size == 0:
            continue
        changed = program.with_weights({array: value + np.linspace(-0.5, 0.5, value.size).reshape(value.shape)})
        assert np.abs(outputs(Vit(changed), images) - whole).max() > 1e-4, array


def test_distilled_heads_are_averaged() -> None:
    model = enliven(timm.create_model("deit_tiny_distilled_patch16_224", depth=1, img_size=32))
    program = program_from_module(model, "deit_tiny_distilled_patch16_224")
    assert program.spec.head.prefix == 2
    stream = torch.randn(1, program.spec.tokens, program.spec.dim)
    with torch.no_grad():
        normed = model.norm(stream)
        expected = (model.head(normed[:, 0]) + model.head_dist(normed[:, 1])) / 2
        got = Vit(program).head(stream)
    assert_same(expected.numpy(), got.numpy())


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(kind: str) -> None:
    name, options, reason = REFUSED[kind]
    if "siglip" not in name and name != "resnet18" and "depth" not in options:
        options = {**options, "depth": 1}
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(UnsupportedModelError, match=reason):
        program_from_module(model, name)


def test_a_subclass_is_refused() -> None:
    """It may override `forward`."""

    class Other(timm.models.vision_transformer.Block):  # type: ignore[misc]
        pass

    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32)
    assert refusal(model) is None
    model.blocks[1] = Other(dim=192, num_heads=3)
    assert "block 1 is a Other" in str(refusal(model))


def test_different_eps_are_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32)
    model.blocks[1].norm2.eps = 1e-3
    assert "different eps" in str(refusal(model))


@pytest.mark.parametrize("size", [(64, 96), (112, 224), (224, 224), (256, 192)])
def test_position_embedding_is_resampled_as_timm_does(size: tuple[int, int], tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    model = enliven(timm.create_model(name))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    program = from_timm(name, weights=tmp_path / "w.safetensors", image_size=size)
    assert (program.spec.image.height, program.spec.image.width) == size
    model.set_input_size(size)
    images = images_for(program, 1)
    assert_same(outputs(model, images), outputs(Vit(program), images))


def test_classes_come_from_the_weights(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert from_timm("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors").spec.head.classes == 7
    with pytest.raises(WeightsError, match=r"head.weight \[7, 192\] instead of \[5, 192\]"):
        from_timm("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", classes=5)


def test_layer_scale_of_upstream_deit3_names_loads(tmp_path: Path) -> None:
    """Meta's own files call it gamma_1, timm ls1.gamma."""
    model = enliven(timm.create_model("deit3_small_patch16_224"))
    state = {
        n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for n, v in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "w.pth")
    program = from_timm("deit3_small_patch16_224", weights=tmp_path / "w.pth")
    assert np.array_equal(
        program.weights["b03_mhsa.proj.weight"], program_from_module(model, "x").weights["b03_mhsa.proj.weight"]
    )


def test_wrong_weights_are_listed(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", depth=11).state_dict()
    state["extra"] = torch.zeros(2)
    state["norm.weight"] = torch.ones(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        from_timm("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "12 missing: blocks.11.norm1.weight" in message and "and 4 more" in message
    assert "1 unexpected: extra" in message
    assert "1 wrong shape: norm.weight [3] instead of [192]" in message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("deit_tny_patch16_224", "nearest names: deit_tiny_patch16_224"),
        ("t2t_vit_15", "t2t_vit_14"),
        ("deit_tiny_patch16_224.fb_in2k", "those of deit_tiny_patch16_224 are: deit_tiny_patch16_224.fb_in1k"),
        ("", "edgevit models"),
        ("hf-hub:somebody/something", "no model is named"),
        ("../../etc", "no model is named"),
    ],
)
def test_unknown_names_offer_the_nearest(name: str, part: str) -> None:
    with pytest.raises(UnknownModelError, match=part):
        from_timm(name)


@pytest.mark.parametrize("size", [(230, 224), (0, 224), (-16, 16), (224, 8)])
def test_impossible_image_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedModelError):
        from_timm("vit_tiny_patch16_224", image_size=size)


def test_impossible_classes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="got -1"):
        from_timm("vit_tiny_patch16_224", classes=-1)
    save_file({"head.weight": torch.tensor(1.0)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"head.weight \[\] instead of \[1000, 192\]"):
        from_timm("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors")


def test_random_weights_are_always_the_same() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two = (from_timm("vit_tiny_patch16_224", classes=3, image_size=(32, 32)) for _ in range(2))
    assert all(np.array_equal(a, two.weights[n]) for n, a in one.weights.items())
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.spec.origin["weights"] == "random"


def test_the_module_is_not_changed() -> None:
    model = enliven(timm.create_model("deit3_small_patch16_224", depth=1, img_size=32))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    program = program_from_module(model, "x")
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert isinstance(model.head, nn.Linear)
    with pytest.raises(ValueError, match="read-only"):
        program.weights["stem.bias"][0] = 1
    with torch.no_grad():
        model.head.bias.add_(1)
    assert not np.array_equal(program.weights["head.bias"], model.head.bias.detach().numpy())


def test_published_weights_keep_the_facts_of_their_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Licence, class names and all of the preprocessing; for random weights of that name only the preprocessing."""
    monkeypatch.setattr("edgevit.frontends.from_timm._pretrained_model", lambda name, options: timm.create_model(name))
    spec = from_timm("vit_tiny_patch16_224", pretrained=True).spec
    assert spec.origin["license"] == "apache-2.0" and spec.origin["model"].endswith(".augreg_in21k_ft_in1k")
    assert len(spec.labels) == 1000 and spec.labels[207] == "golden retriever"
    random = from_timm("vit_tiny_patch16_224").spec
    assert "license" not in random.origin and random.labels == () and random.image == spec.image


def test_all_of_timms_data_configuration_is_taken_or_refused() -> None:
    config = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear", "mean": (0, 0, 0), "std": (1, 1, 1)}
    image = image_spec(config, 32, 48)
    assert (image.crop_mode, image.crop_pct, image.interpolation) == ("squash", 1.0, "bilinear")
    assert (image.height, image.width, image.mean, image.std) == (32, 48, (0.0,) * 3, (1.0,) * 3)
    for change in ({"interpolation": "random"}, {"crop_mode": "other"}):
        with pytest.raises(UnsupportedModelError, match="timm's configuration asks for"):
            image_spec(config | change, 32, 32)


def test_names_with_squash_have_it() -> None:
    name = "vit_medium_patch16_gap_384.sw_in12k_ft_in1k"
    model = timm.create_model(name, depth=1, embed_dim=64, num_heads=2)
    assert program_from_module(model, name).spec.image.crop_mode == model.pretrained_cfg.get("crop_mode") == "squash"
