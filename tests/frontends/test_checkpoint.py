from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from safetensors.torch import save_file

from edgevit.errors import WeightsError
from edgevit.frontends.checkpoint import check_keys, load_checkpoint, shorten

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([0.5, -0.5])}


def assert_loads(path: Path) -> None:
    state = load_checkpoint(path)
    assert set(state) == set(STATE)
    assert all(torch.equal(state[n], v) and state[n].dtype == torch.float32 for n, v in STATE.items())


def test_safetensors_loads(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 7, "arch": "x"},
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model": s, "model_ema": {"weight": torch.zeros(1)}},
        lambda s: {"state_dict": {"weight": torch.zeros(1)}, "state_dict_ema": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{n}": v for n, v in s.items()},
        lambda s: {"state_dict": {f"module.module.{n}": v for n, v in s.items()}},
        lambda s: {n: torch.nn.Parameter(v) for n, v in s.items()},
        lambda s: {n: v.double() for n, v in s.items()},
        lambda s: {n: v.bfloat16() for n, v in s.items()},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar"])
def test_torch_forms_load(wrap: Callable[[Any], Any], suffix: str, tmp_path: Path) -> None:
    torch.save(wrap(STATE), tmp_path / f"w{suffix}")
    assert_loads(tmp_path / f"w{suffix}")


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs(zipped: bool, tmp_path: Path) -> None:
    content = {"model": STATE, "extra": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="code is never run from a weights file"):
        load_checkpoint(tmp_path / "w.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(WeightsError):
        load_checkpoint(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "no named tensors: got nothing"),
        ([torch.zeros(1)], "got list"),
        (torch.zeros(3), "got Tensor"),
        ({"epoch": 3, "lr": 0.1}, "not tensors are epoch, lr"),
        ({"model": {"a": 1}}, "not tensors are model"),
        ({"a": torch.tensor([float("nan")])}, "not finite in a"),
        ({"a": torch.tensor([float("inf")]), "b": torch.zeros(1)}, "not finite in a"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "twice"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "dense real tensors"),
        ({"a": torch.zeros(2).to_sparse()}, "dense real tensors"),
        ({1: torch.zeros(1)}, "not tensors are 1"),
    ],
)
def test_wrong_content_is_told(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=reason):
        load_checkpoint(tmp_path / "w.pth")


def test_missing_files_folders_and_suffixes(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load_checkpoint(tmp_path / "w.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(WeightsError, match="does not exist"):
        load_checkpoint(tmp_path / "folder.pth")
    for name, got in (("w.onnx", "got .onnx"), ("weights", "got no suffix")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(WeightsError, match=got):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04broken", b"<html>404</html>"]
)
def test_other_files_are_no_weights(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(WeightsError):
        load_checkpoint(tmp_path / f"w{suffix}")


def file_bytes(form: str) -> bytes:
    if form == "safetensors":
        return bytes(save_safetensors(STATE))
    buffer = io.BytesIO()
    torch.save({"model": STATE}, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_a_weights_error_or_loads(form: str, data: st.DataObject, tmp_path: Path) -> None:
    """Cut or changed anywhere: never another exception, never something that is not tensors."""
    raw = bytearray(file_bytes(form))
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1), label="length")]
    else:
        for _ in range(data.draw(st.integers(1, 4), label="changes")):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    path.write_bytes(raw)
    try:
        state = load_checkpoint(path)
    except WeightsError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(n, str) and v.dtype == torch.float32 for n, v in state.items())


names = st.text("abc.", min_size=1, max_size=4)
shapes = st.dictionaries(names, st.lists(st.integers(0, 3), max_size=2).map(tuple), max_size=14)


@given(state=shapes, expected=shapes)
def test_check_keys_passes_only_what_fits_and_counts_all_faults(
    state: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    tensors = {n: torch.zeros(shape) for n, shape in state.items()}
    if state == expected:
        check_keys(tensors, expected, "the model")
        return
    with pytest.raises(WeightsError) as caught:
        check_keys(tensors, expected, "the model")
    message = str(caught.value)
    counts = {
        "missing": len(expected.keys() - state.keys()),
        "unexpected": len(state.keys() - expected.keys()),
        "wrong shape": sum(state[n] != expected[n] for n in state.keys() & expected.keys()),
    }
    for title, count in counts.items():
        assert (f"  {count} {title}: " in message) == bool(count)


def test_long_lists_are_shortened() -> None:
    assert shorten(str(i) for i in range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert shorten(str(i) for i in range(30)) == "0, 1, 2, 3, 4, 5, 6, 7 and 22 more"
