import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgevit.backends.onnxruntime import arena, compile, frames, memory_bound
from edgevit.backends.onnxruntime.arena import measure_arena, run_capped
from edgevit.backends.onnxruntime.memory_bound import bound
from edgevit.errors import BoundError
from edgevit.onnx_form.assemble import assemble
from edgevit.schema.memory_bound import check_bound
from edgevit.verify.memory import check_capped
from tests.tiny import tiny_images, tiny_program


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    compile(assemble(tiny_program(gated=True)), folder)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return tiny_images(tiny_program(gated=True).spec, 1)


def test_a_halved_bound_fails_the_check(model: Path, image: np.ndarray) -> None:
    made, measured = bound(model), measure_arena(model, image)
    assert check_bound(made, measured).paths[0].ratio >= 1
    halved = dataclasses.replace(made, bound=dataclasses.replace(made.bound, arena_bytes=made.bound.arena_bytes // 2))
    with pytest.raises(BoundError, match="path all_open: peak .* is above the bound"):
        check_bound(halved, measured)


def test_one_node_above_its_figure_fails_the_check(model: Path, image: np.ndarray) -> None:
    made, measured = bound(model), measure_arena(model, image)
    name, size = next(entry for entry in made.timeline if entry[0] == "b01_ffn/act")
    lowered = tuple((n, s - 8192 if n == name else s) for n, s in made.timeline)
    with pytest.raises(BoundError, match=f"in use after {name}, the bound says {size - 8192}"):
        check_bound(dataclasses.replace(made, timeline=lowered), measured)


def test_a_node_that_the_bound_does_not_know_fails_the_check(model: Path, image: np.ndarray) -> None:
    made, measured = bound(model), measure_arena(model, image)
    without = tuple(entry for entry in made.timeline if entry[0] != "b01_ffn/act")
    with pytest.raises(BoundError, match="b01_ffn/act ran, which the bound does not know"):
        check_bound(dataclasses.replace(made, timeline=without), measured)


def test_half_the_bound_fails_cleanly(model: Path, image: np.ndarray) -> None:
    made = bound(model)
    half = run_capped(model, made, image, cap_bytes=made.bound.arena_bytes // 2)
    assert not half.passed
    with pytest.raises(BoundError, match=f"capped at {made.bound.arena_bytes // 2} bytes"):
        check_capped(half)
    assert check_capped(run_capped(model, made, image)).cap_bytes == made.bound.arena_bytes


def test_a_rule_that_is_too_kind_is_caught(model: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure_arena(model, image)
    monkeypatch.setattr(frames, "IN_PLACE", {**frames.IN_PLACE, "Gelu": (0,)})
    with pytest.raises(BoundError, match="in use after b00_ffn/act"):
        check_bound(bound(model), measured)


def test_weights_that_are_forgotten_are_caught(model: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure_arena(model, image)
    monkeypatch.setattr(memory_bound, "PACKED", {})
    with pytest.raises(BoundError, match="is above the bound"):
        check_bound(bound(model), measured)


def test_a_process_that_does_not_answer_is_one_clear_error(
    model: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "TIMEOUT_S", 0.01)
    with pytest.raises(BoundError, match=r"no answer within 0.01 s"):
        measure_arena(model, image)


def test_nothing_measured_is_not_a_pass(model: Path) -> None:
    with pytest.raises(BoundError, match="no path was measured"):
        check_bound(bound(model), ())


def test_the_ort_file_stays_within_the_same_bound(model: Path, image: np.ndarray) -> None:
    measured = measure_arena(model.with_name("model.ort"), image)
    assert [p.open_branches for p in measured][:2] == [4, 0]
    check_bound(bound(model), measured)


def test_a_model_that_cannot_run_is_one_clear_error(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(BoundError, match="the run that measures memory failed"):
        measure_arena(tmp_path / "absent.onnx", image)
