from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgevit.errors import UnknownModelError, UnsupportedModelError, WeightsError
from edgevit.frontends.t2t import (
    CONFIGS,
    random_state,
    sinusoid_table,
    t2t_program,
    t2t_spec,
    upstream_shapes,
)
from edgevit.program.macs import total_macs
from edgevit.torch_form.vit import Vit, normalise
from tests.frontends.real import enliven, outputs, real_images
from tests.frontends.t2t_reference import T2tVit

torch.set_num_threads(1)

# Parameters in millions as the paper prints them; MACs in billions recounted from its description of the layers
# (the paper's own column has one decimal and rounds 1.15 to 1.1 and 13.66 to 13.8).
TABLE = {
    "t2t_vit_7": (4.3, 1.15),
    "t2t_vit_10": (5.9, 1.52),
    "t2t_vit_12": (6.9, 1.76),
    "t2t_vit_14": (21.5, 4.78),
    "t2t_vit_19": (39.2, 8.48),
    "t2t_vit_24": (64.1, 13.66),
    "t2t_vit_t_14": (21.5, 6.09),
    "t2t_vit_t_19": (39.2, 9.78),
    "t2t_vit_t_24": (64.1, 14.97),
}


def reference(name: str, size: tuple[int, int] = (224, 224), classes: int = 1000) -> T2tVit:
    config = CONFIGS[name]
    return T2tVit(
        performer=config.stem == "t2t_performer",
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        ratio=config.ffn_ratio,
        patches=size[0] * size[1] // 256,
        classes=classes,
    )


def enlivened(name: str, size: tuple[int, int]) -> T2tVit:
    """Random weights that matter; random features and positions keep their meaning."""
    torch.manual_seed(0)
    model = reference(name, size)
    features = {n: p.clone() for n, p in model.named_parameters() if n.endswith(".w") or n == "pos_embed"}
    enliven(model)
    with torch.no_grad():
        for feature, value in features.items():
            model.get_parameter(feature).copy_(value)
        for name, parameter in model.named_parameters():
            if "kqv" in name:  # exp(-|k|^2 / 2) of keys of length 8 would vanish beside the guard of 1e-8
                parameter.mul_(0.2)
    return model


def test_the_table_holds_every_model() -> None:
    assert set(TABLE) == set(CONFIGS)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_are_those_of_the_paper(name: str) -> None:
    spec = t2t_spec(name)
    parameters, macs = TABLE[name]
    ours = sum(math.prod(shape) for shape in upstream_shapes(spec).values())
    assert ours == pytest.approx(parameters * 1e6, rel=0.01)
    assert total_macs(spec, full_rows=True) == pytest.approx(macs * 1e9, rel=0.01)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_names_and_shapes_are_those_of_the_reference(name: str) -> None:
    state = {n: tuple(v.shape) for n, v in reference(name).state_dict().items()}
    assert upstream_shapes(t2t_spec(name)) == state


@pytest.mark.parametrize(
    ("name", "size"), [("t2t_vit_7", (224, 224)), ("t2t_vit_7", (64, 96)), ("t2t_vit_t_14", (96, 64))]
)
def test_outputs_are_those_of_the_reference(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = enlivened(name, size)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    program = t2t_program(name, tmp_path / "w.safetensors", image_size=size)
    images = normalise(program.spec, real_images(2, *size))
    expected, got = outputs(model, images), outputs(Vit(program), images)
    # float32 in both, sums in different orders: 1e-5 for outputs up to 1, in proportion for larger ones.
    assert np.abs(expected - got).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 0.01, "the outputs do not depend on the image"


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_every_array_of_the_stem_matters(name: str, tmp_path: Path) -> None:
    """A comparison of outputs can only notice an array that changes them."""
    save_file(enlivened(name, (32, 32)).state_dict(), tmp_path / "w.safetensors")
    program = t2t_program(name, tmp_path / "w.safetensors", image_size=(32, 32))
    images = normalise(program.spec, real_images(1, 32, 32))
    whole = outputs(Vit(program), images)
    for array, value in program.weights.items():
        if array.startswith("stem."):
            changed = program.with_weights({array: value + np.linspace(-0.5, 0.5, value.size).reshape(value.shape)})
            assert np.abs(outputs(Vit(changed), images) - whole).max() > 1e-4, array


def test_positions_are_the_sinusoids_of_the_reference() -> None:
    assert np.abs((sinusoid_table(50, 64) - T2tVit.positions(50, 64)[0]).numpy()).max() < 1e-6


def test_random_features_are_orthogonal_and_scaled() -> None:
    w = random_state(t2t_spec("t2t_vit_7"))["tokens_to_token.attention1.w"]
    assert np.allclose((w @ w.T).numpy(), 32 * np.eye(32), atol=1e-4)


def test_random_weights_are_always_the_same() -> None:
    one, two = t2t_program("t2t_vit_7"), t2t_program("t2t_vit_7")
    assert one.spec == two.spec
    assert all(np.array_equal(a, two.weights[n]) for n, a in one.weights.items())


def test_wrapped_checkpoint_with_other_classes_loads(tmp_path: Path) -> None:
    state = reference("t2t_vit_7", classes=7).state_dict()
    torch.save({"state_dict_ema": {f"module.{n}": v for n, v in state.items()}, "epoch": 3}, tmp_path / "w.pth.tar")
    program = t2t_program("t2t_vit_7", tmp_path / "w.pth.tar")
    assert program.spec.head.classes == 7
    assert program.spec.origin["weights_file"] == "w.pth.tar"


def test_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    save_file(reference("t2t_vit_7").state_dict(), tmp_path / "w.safetensors")
    program = t2t_program("t2t_vit_7", tmp_path / "w.safetensors", image_size=(112, 160))
    assert program.weights["stem.pos"].shape == (70, 256)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(reference("t2t_vit_10").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="33 unexpected: blocks.7"):
        t2t_program("t2t_vit_7", tmp_path / "w.safetensors")


def test_bad_names_sizes_and_classes() -> None:
    with pytest.raises(UnknownModelError, match="t2t_vit_14"):
        t2t_program("t2t_vit_15")
    with pytest.raises(UnsupportedModelError, match="multiples of 16, got 220 x 224"):
        t2t_program("t2t_vit_7", image_size=(220, 224))
    with pytest.raises(UnsupportedModelError, match="got 0"):
        t2t_program("t2t_vit_7", classes=0)
