from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from benchmarks.checkpoint_forms import FORMS, Subject, transformers_state
from benchmarks.checkpoints import subjects
from edgevit.errors import UnsupportedModelError, WeightsError
from edgevit.frontends.own_weights import own_program
from edgevit.frontends.resolve import resolve
from edgevit.frontends.stated import NOTES
from edgevit.frontends.timm_import import timm
from edgevit.program.program import Program
from edgevit.torch_form.vit import Vit, normalise
from tests.frontends.real import DATA, enliven, needs_data, outputs, real_images

torch.set_num_threads(1)
TOLERANCE = 1e-5
SMALL = {subject.name: subject for subject in subjects(None)}
DINO, CLIP, DEIT = "vit_small_patch14_dinov2", "vit_base_patch32_clip_quickgelu_224", "deit_tiny_distilled_patch16_224"


def images_for(program: Program) -> torch.Tensor:
    image = program.spec.image
    noise = np.random.default_rng(0).integers(0, 256, (2, image.height, image.width, 3), dtype=np.uint8)
    return normalise(program.spec, noise)


def assert_same(program: Program, expected: np.ndarray) -> None:
    got = outputs(Vit(program), images_for(program))
    assert got.shape == expected.shape
    assert float(np.abs(got - expected).max()) <= TOLERANCE * max(1.0, float(np.abs(expected).max()))


def hub(subject: Subject, folder: Path, **change: Any) -> Path:
    """The subject as a folder of transformers; `change` replaces values of config.json."""
    FORMS["transformers' folder"](subject, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


def vit() -> Subject:
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 3, "img_size": 32}
    module = enliven(timm.create_model("vit_tiny_patch16_224", **options))
    return Subject(title="", name="vit_tiny_patch16_224", options=options, module=module)


def test_a_hub_folder_is_a_model_by_itself(tmp_path: Path) -> None:
    """Architecture, eps, preprocessing and labels are the folder's, and no name is needed."""
    folder = hub(vit(), tmp_path, id2label={"0": "a", "1": "b", "2": "c"}, layer_norm_eps=1e-3)
    said: list[str] = []
    program = resolve(str(folder), say=said.append)
    image = program.spec.image
    assert program.spec.norm_eps == 1e-3
    assert (image.mean, image.std, image.crop_mode, image.crop_pct) == ((0.5,) * 3, (0.25,) * 3, "squash", 1.0)
    assert image.interpolation == "bilinear" and program.spec.labels == ("a", "b", "c")
    assert program.spec.origin["source"] == "transformers" and "license" not in program.spec.origin
    assert not any("assumed" in line for line in said)


def test_a_name_beside_a_folder_must_agree(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"another model than vit_tiny_patch16_224: width 64 instead of 192"):
        resolve("vit_tiny_patch16_224", weights=hub(vit(), tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_224"}))
    with pytest.raises(WeightsError, match="says deit_tiny_patch16_224, not vit_tiny_patch16_224"):
        resolve("vit_tiny_patch16_224", weights=tmp_path)


def test_a_folder_without_preprocessing_is_assumed_and_said(tmp_path: Path) -> None:
    folder = hub(vit(), tmp_path)
    (folder / "preprocessor_config.json").unlink()
    said: list[str] = []
    assert resolve(str(folder), say=said.append).spec.image.mean == (0.5, 0.5, 0.5)
    assert any("preprocessing assumed of vit" in line for line in said)


def test_dinov2_takes_the_size_of_its_preprocessing_as_transformers_resamples(tmp_path: Path) -> None:
    subject = SMALL[DINO]
    folder = hub(subject, tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 28, "width": 28}}))
    said: list[str] = []
    program = resolve(str(folder), say=said.append)
    assert (program.spec.image.height, program.spec.image.width) == (28, 28)
    assert any("resampled from 4 x 4 to 2 x 2" in line for line in said)
    module: Any = subject.make(img_size=28)
    state = subject.state()
    grid = state["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False)  # as transformers' DINOv2 does
    grid = grid.permute(0, 2, 3, 1).reshape(1, 4, -1)
    module.load_state_dict(state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], grid], dim=1)})
    assert_same(program, outputs(module, images_for(program)))


def test_a_size_against_the_weights_is_asked_for(tmp_path: Path) -> None:
    folder = hub(vit(), tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 64, "width": 64}}))
    with pytest.raises(WeightsError, match="makes images of 64 x 64, the weights are for 32 x 32.*--image-size"):
        resolve(str(folder))
    assert resolve(str(folder), image_size=(32, 32)).spec.grid == (2, 2)
    assert resolve(str(folder), image_size=(64, 64)).spec.grid == (4, 4)


def test_deit_for_image_classification_reads_the_class_token_alone(tmp_path: Path) -> None:
    """The distillation token takes part in attention; transformers' model has one classifier."""
    subject = SMALL[DEIT]
    made = transformers_state(subject)
    state = {n.replace("cls_classifier", "classifier"): v for n, v in made[0].items() if "distillation_c" not in n}
    save_file(state, hub(subject, tmp_path) / "model.safetensors")
    program = resolve(str(tmp_path))
    assert (program.spec.stem.prefix, program.spec.head.prefix) == (2, 1)
    module: Any = subject.module
    with torch.no_grad():
        tokens = module.forward_features(images_for(program))
        expected = module.head(tokens[:, 0]).numpy()
    assert_same(program, expected)


def test_clip_for_image_classification_reads_the_mean_before_the_last_norm(tmp_path: Path) -> None:
    subject = SMALL[CLIP]
    made = transformers_state(subject)
    weight, bias = torch.randn(5, 64), torch.randn(5)
    state = {n: v for n, v in made[0].items() if "projection" not in n or "patch" in n}
    save_file(
        state | {"classifier.weight": weight, "classifier.bias": bias}, hub(subject, tmp_path) / "model.safetensors"
    )
    program = resolve(str(tmp_path))
    module: Any = subject.make(final_norm=False, num_classes=0, global_pool="", fc_norm=False)
    module.load_state_dict({n: v for n, v in subject.state().items() if not n.startswith(("head.", "norm."))})
    with torch.no_grad():
        expected = (module(images_for(program))[:, 1:].mean(1) @ weight.T + bias).numpy()
    assert_same(program, expected)


def test_nothing_of_a_name_but_its_preprocessing_is_put_on_own_weights(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=4).state_dict(), tmp_path / "w.safetensors")
    said: list[str] = []
    program = own_program("vit_tiny_patch16_224", tmp_path / "w.safetensors", say=said.append)
    assert "license" not in program.spec.origin and program.spec.origin["model"] == "vit_tiny_patch16_224"
    assert program.spec.labels == ()
    assert any("preprocessing assumed of vit_tiny_patch16_224.augreg_in21k_ft_in1k" in line for line in said)
    assert program.spec.origin[NOTES] == "; ".join(said)


@pytest.mark.parametrize(
    ("name", "named"), [("vit_tiny_patch16_224", False), ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", True)]
)
def test_a_thousand_classes_have_names_only_where_the_user_named_the_tag(
    name: str, named: bool, tmp_path: Path
) -> None:
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.safetensors")
    said: list[str] = []
    program = own_program(name, tmp_path / "w.safetensors", say=said.append)
    assert (len(program.spec.labels) == 1000) == named
    assert any(("class names are those of imagenet-1k" if named else "--labels imagenet-1k") in line for line in said)


def test_the_size_of_the_weights_decides_and_another_one_is_said(tmp_path: Path) -> None:
    module = enliven(timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=3))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    said: list[str] = []
    program = own_program("deit_tiny_patch16_224", tmp_path / "w.safetensors", say=said.append)
    assert (program.spec.image.height, program.spec.image.width) == (64, 64)
    assert any("image size taken as 64x64" in line for line in said)
    assert_same(program, outputs(module, images_for(program)))


def test_a_size_with_as_many_patches_is_taken_as_it_is(tmp_path: Path) -> None:
    module = enliven(timm.create_model("vit_tiny_patch16_224", img_size=(192, 432), depth=12))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    program = own_program("vit_tiny_patch16_224", tmp_path / "w.safetensors", image_size=(192, 432))
    assert program.spec.grid == (12, 27)
    assert np.array_equal(program.weights["stem.pos"], module.pos_embed[0, 1:].detach().numpy())


@needs_data
def test_a_real_table_read_in_the_wrong_grid_is_doubted(tmp_path: Path) -> None:
    assert DATA is not None
    state = load_file(DATA / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors")
    table = timm.layers.resample_abs_pos_embed(state["pos_embed"], [12, 27], [14, 14], num_prefix_tokens=1)
    save_file(state | {"pos_embed": table.contiguous()}, tmp_path / "w.safetensors")
    said: list[str] = []
    own_program("vit_tiny_patch16_224", tmp_path / "w.safetensors", say=said.append)
    assert any("image size taken as 288x288" in line for line in said)
    assert any(line.startswith("warning:") and "--image-size 192,432" in line for line in said)
    said.clear()
    own_program("vit_tiny_patch16_224", tmp_path / "w.safetensors", image_size=(192, 432), say=said.append)
    assert not any(line.startswith("warning:") for line in said)


@needs_data
def test_real_weights_under_the_names_of_transformers_give_the_same_outputs(tmp_path: Path) -> None:
    assert DATA is not None
    module = timm.create_model("deit_tiny_patch16_224").eval()
    module.load_state_dict(load_file(DATA / "deit_tiny_patch16_224.fb_in1k.safetensors"))
    subject = Subject(title="", name="deit_tiny_patch16_224", options={}, module=module)
    program = resolve(str(hub(subject, tmp_path)))
    x = normalise(program.spec, real_images(2))
    module.eval()
    expected, got = outputs(module, x), outputs(Vit(program), x)
    assert float(np.abs(expected - got).max()) < 1e-4  # transformers' eps is 1e-12, timm's 1e-6


def test_a_file_without_a_model_needs_a_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"states no model \(it holds no config.json\)"):
        own_program(None, tmp_path / "w.safetensors")


def test_ema_is_only_for_files_that_have_it(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="holds no averaged weights; omit --ema"):
        own_program("vit_tiny_patch16_224", tmp_path / "w.safetensors", ema=True)
    with pytest.raises(WeightsError, match="--ema and --no-ema choose between the weights of a file"):
        resolve("vit_tiny_patch16_224", ema=True)


def test_a_config_of_something_else_beside_a_named_file_is_not_followed(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=4).state_dict(), tmp_path / "w.safetensors")
    for config in ({"model_type": "bert"}, {"architecture": "deit_tiny_patch16_224"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        said: list[str] = []
        program = own_program("vit_tiny_patch16_224", tmp_path / "w.safetensors", say=said.append)
        assert program.spec.head.classes == 4
        assert any(line.startswith("warning: config.json beside w.safetensors was not read") for line in said)


@pytest.mark.parametrize("strange", ["checkpoint_path", "pretrained_cfg", "scriptable", "x"])
def test_what_timm_would_do_beside_building_is_not_asked_of_it(strange: str, tmp_path: Path) -> None:
    """A config.json must not name another file to load."""
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1, strange: "other.pth"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"cls_token": torch.zeros(1, 1, 192)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=f"states what no ViT has: {strange}"):
        own_program(None, tmp_path)


def test_null_in_a_config_is_a_value_left_away(tmp_path: Path) -> None:
    folder = hub(vit(), tmp_path, intermediate_size=None)
    with pytest.raises(WeightsError, match=r"blocks.0.mlp.fc1.weight .256, 64. instead of .3072, 64."):
        own_program(None, folder)
    hub(vit(), tmp_path, mlp_ratio=None, layer_norm_eps=None)
    assert own_program(None, folder).spec.norm_eps == 1e-12
