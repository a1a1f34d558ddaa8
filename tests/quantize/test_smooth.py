from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevit.program.program import Program
from edgevit.quantize.smooth import smooth
from tests.quantize.watched import logits, watched
from tests.tiny import tiny_images, tiny_program


def spread(program: Program, name: str) -> float:
    """Largest channel over the median one."""
    seen = watched(program).tensor(name)
    assert seen is not None
    return float(seen.column_abs_max.max() / np.median(seen.column_abs_max))


@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"activation": "relu"}, {"activation": "quick_gelu"}, {"removed": ("b00_mhsa", "b01_ffn")}],
    ids=str,
)
@pytest.mark.parametrize("alpha", [0.3, 0.7, 1.0])
def test_function_is_the_same_to_the_last_bit(options: dict[str, Any], alpha: float) -> None:
    program = tiny_program(**options)
    smoothed = smooth(program, watched(program), alpha)
    assert any((smoothed.weights[name] != value).any() for name, value in program.weights.items())
    images = tiny_images(program.spec, 4, seed=2)
    np.testing.assert_array_equal(logits(smoothed, None, images), logits(program, None, images))


@pytest.mark.parametrize("name", ["b00_mhsa.qkv", "b00_ffn.fc1", "b01_mhsa.proj"])
def test_channels_become_more_alike(name: str) -> None:
    program = tiny_program()
    branch = name.partition(".")[0]
    uneven = np.geomspace(0.1, 10, 32).astype(np.float32)
    if name.endswith("proj"):
        weight = program.weights[f"{branch}.qkv.weight"].copy()
        weight[:, -32:] *= uneven
        program = program.with_weights({f"{branch}.qkv.weight": weight})
    else:
        program = program.with_weights({f"{branch}.norm.weight": uneven})
    smoothed = smooth(program, watched(program), 0.8)
    assert spread(smoothed, name) < 0.5 * spread(program, name)


def test_zero_is_off_and_what_is_given_stays() -> None:
    program = tiny_program()
    ranges, before = watched(program), {k: v.copy() for k, v in program.weights.items()}
    assert smooth(program, ranges, 0.0) is program
    smooth(program, ranges, 0.5)
    assert all((program.weights[k] == v).all() for k, v in before.items())


def test_dead_channels_are_left_alone() -> None:
    program = tiny_program()
    norm = {f"b00_ffn.norm.{part}": program.weights[f"b00_ffn.norm.{part}"].copy() for part in ("weight", "bias")}
    for array in norm.values():
        array[3] = 0
    fc1 = program.weights["b00_ffn.fc1.weight"].copy()
    fc1[3] *= 100
    program = program.with_weights({**norm, "b00_ffn.fc1.weight": fc1})
    smoothed = smooth(program, watched(program), 0.5)
    np.testing.assert_array_equal(smoothed.weights["b00_ffn.fc1.weight"][3], program.weights["b00_ffn.fc1.weight"][3])


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    program = tiny_program()
    with pytest.raises(ValueError, match="smoothing"):
        smooth(program, watched(program), alpha)


def test_alpha_one_makes_all_channels_alike_up_to_the_rounding_of_scales() -> None:
    program = tiny_program()
    norm = {"b00_ffn.norm.weight": np.geomspace(0.1, 10, 32).astype(np.float32)}
    program = program.with_weights(norm)
    seen = watched(smooth(program, watched(program), 1.0)).tensor("b00_ffn.fc1")
    assert seen is not None
    assert seen.column_abs_max.max() / seen.column_abs_max.min() <= 2.01
