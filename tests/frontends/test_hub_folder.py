from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from edgevit.errors import UnsupportedModelError, WeightsError
from edgevit.frontends.checkpoint import load_checkpoint
from edgevit.frontends.hub_folder import crop_share, read_hub, read_preprocessor, weight_files

FILE = Path("preprocessor_config.json")
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.25, 0.5]
VIT = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}
CLIP = {**VIT, "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}


def read(settings: dict[str, Any], square: bool = True) -> Any:
    return read_preprocessor(settings, FILE, square=square)


def test_an_exact_size_is_squashed_and_a_short_edge_is_cropped() -> None:
    vit, clip = read(VIT), read({**CLIP, "resample": 3})
    assert (vit.size, vit.crop_mode, vit.crop_pct, vit.interpolation) == ((224, 224), "squash", 1.0, "bilinear")
    assert (vit.mean, vit.std) == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.5))
    assert (clip.size, clip.crop_mode, clip.crop_pct, clip.interpolation) == ((224, 224), "center", 0.875, "bicubic")


def test_a_bare_number_means_what_its_processor_means() -> None:
    assert read({**VIT, "size": 224}).crop_mode == "squash"
    clip = read({**CLIP, "size": 256, "crop_size": 224}, square=False)
    assert (clip.crop_mode, clip.crop_pct) == ("center", 0.875)
    deit = read({**CLIP, "size": 256, "crop_size": 224})
    assert (deit.crop_mode, deit.crop_pct, deit.size) == ("squash", 0.875, (224, 224))


def test_another_rescaling_or_none_is_kept_exactly() -> None:
    pixel = 100.0
    for settings, factor in (({"rescale_factor": 1 / 127.5}, 1 / 127.5), ({"do_rescale": False}, 1.0)):
        found = read({**VIT, **settings})
        for channel in range(3):
            theirs = (pixel * factor - MEAN[channel]) / STD[channel]
            assert math.isclose((pixel / 255 - found.mean[channel]) / found.std[channel], theirs)
    plain = read({**VIT, "do_normalize": False})
    assert (plain.mean, plain.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"do_resize": False},
        {"do_pad": True},
        {"size": {"longest_edge": 224}},
        {"size": {"shortest_edge": 224}},
        {"resample": 9},
        {"do_center_crop": True, "crop_size": {"height": 224, "width": 112}},
    ],
)
def test_other_steps_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"preprocessor_config.json .* cannot be kept"):
        read({**VIT, **change})


@pytest.mark.parametrize("change", [{"image_mean": None}, {"image_std": [1, 2]}, {"rescale_factor": 0}, {"size": "x"}])
def test_missing_numbers_are_told(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="preprocessor_config.json states"):
        read({**VIT, **change})


@given(crop=st.integers(16, 600), resized=st.integers(16, 600))
def test_the_share_gives_the_size_back(crop: int, resized: int) -> None:
    assert math.floor(crop / crop_share(crop, resized)) == resized


def folder_with(folder: Path, config: dict[str, Any], **more: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in more.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_labels_licence_and_preprocessing_come_from_the_folder(tmp_path: Path) -> None:
    config = {"model_type": "vit", "id2label": {"1": "dog", "0": "cat"}}
    folder_with(tmp_path, config, preprocessor_config=VIT)
    (tmp_path / "README.md").write_text("---\ntags: x\nlicense: cc-by-4.0\n---\ntext\nlicense: mit\n")
    hub = read_hub(tmp_path)
    assert hub is not None and hub.preprocessing is not None
    assert (hub.labels, hub.license, hub.preprocessing.assumed) == (("cat", "dog"), "cc-by-4.0", False)


def test_what_a_folder_does_not_state_stays_unstated(tmp_path: Path) -> None:
    hub = read_hub(folder_with(tmp_path, {"model_type": "clip", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert hub is not None and hub.preprocessing is not None
    assert (hub.labels, hub.license, hub.preprocessing.assumed) == ((), "", True)
    assert read_hub(folder_with(tmp_path, {"anything": 1})) is None


def test_another_model_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="type 'swin'; known are vit, "):
        read_hub(folder_with(tmp_path, {"model_type": "swin"}))


def test_shards_must_be_there_and_stay_in_their_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(WeightsError, match="needs two.safetensors beside it"):
        load_checkpoint(index)
    save_file({"c": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match="promises b, which no shard holds"):
        load_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "x" * 300, "b": "one.safetensors"}}))
    with pytest.raises(WeightsError, match="needs xxx"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(WeightsError, match="no file beside it"):
        weight_files(tmp_path)


def test_a_folder_with_nothing_to_choose_by(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="got none"):
        weight_files(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"got a.pth, b.pth"):
        weight_files(tmp_path)


CONFIG = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, allowed: 0 to 1024 branches"),
        ({"hidden_size": 10**12}, "hidden_size 1000000000000"),
        ({"hidden_size": "32"}, "hidden_size '32'"),
        ({"hidden_size": True}, "hidden_size True"),
        ({"intermediate_size": -1}, "intermediate_size -1"),
        ({"image_size": 10**9}, "image_size 1000000000"),
        ({"image_size": [32, 10**9]}, "image_size 1000000000"),
        ({"patch_size": 1.5}, "patch_size 1.5"),
        ({"mlp_ratio": 1e300}, "mlp_ratio 1e.300"),
        ({"mlp_ratio": "4"}, "mlp_ratio '4'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps 0"),
        ({"layer_norm_eps": []}, "layer_norm_eps a list of 0"),
        ({"hidden_size": [32, 32]}, "hidden_size a list of 2"),
        ({"num_attention_heads": {}}, "num_attention_heads a table of 0"),
        ({"id2label": {"0": ["a"]}}, "class name a list of 1"),
        ({"hidden_size": 10**400}, "an integer of 401 digits"),
        ({"x": "\ud800"}, "half a surrogate"),
    ],
)
def test_a_config_of_sizes_that_no_model_has_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(WeightsError, match=words):
        read_hub(tmp_path)


def test_arguments_of_timm_are_held_against_the_same_limits(tmp_path: Path) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**9}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="depth 1000000000, allowed: 0 to 1024 branches"):
        read_hub(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_args": [["depth", 1]]}, "model_args a list of 1, expected a table"),
        ({"label_names": [["a"]]}, "class name a list of 1"),
        ({"label_names": ["a"], "label_descriptions": {"a": {}}}, "class name a table of 0"),
        *(({"pretrained_cfg": {"mean": value}}, "mean ") for value in (1, "abc", [1, 2], [""] * 3)),
        ({"pretrained_cfg": {"std": {}}}, "std a table of 0, expected three numbers"),
        *(({"pretrained_cfg": {key: []}}, key) for key in ("interpolation", "crop_mode", "crop_pct", "tag", "license")),
    ],
)
def test_a_config_of_timm_with_other_types_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **change}))
    with pytest.raises(WeightsError, match=words):
        read_hub(tmp_path)


@pytest.mark.parametrize("resample", [[], {}, "2", None, 6])
def test_a_filter_that_is_none_is_refused(resample: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="states resample"):
        read({**VIT, "resample": resample})


@pytest.mark.parametrize("short", [-5, 0, 10**18, True])
def test_a_short_side_that_no_image_has_is_refused(short: int) -> None:
    with pytest.raises(WeightsError, match="states the size"):
        read({**CLIP, "size": short, "crop_size": 224}, square=False)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" + b"{}," * 5_000_000 + b"1]"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "preprocessor_config.json"])
def test_hostile_json_in_a_folder_is_a_weights_error(raw: bytes, file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        weight_files(tmp_path) if "index" in file else read_hub(tmp_path)
