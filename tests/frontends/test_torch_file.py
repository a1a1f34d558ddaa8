from __future__ import annotations

import argparse
import collections
import pathlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import WeightsError
from edgevit.frontends.torch_file import StandIn, read_torch

TENSORS = {"a": torch.arange(3.0)}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1),
        np.float64(72.1),
        np.arange(3),
        pathlib.PurePosixPath("x"),
        collections.defaultdict(list, a=[1]),
        collections.OrderedDict(a=np.int64(3)),
        [np.float32(1), {"deep": argparse.Namespace()}],
    ],
)
def test_settings_and_figures_beside_the_tensors_are_not_built(beside: Any, zipped: bool, tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "beside": beside}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content = read_torch(tmp_path / "w.pth")
    assert torch.equal(content["model"]["a"], TENSORS["a"])
    assert isinstance(content["beside"], StandIn | dict | list)


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"model": nn.Linear(2, 2)}])
def test_a_stored_module_is_named_by_its_type(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        read_torch(tmp_path / "w.pth")
    message = str(caught.value)
    assert "torch.nn.modules.linear.Linear" in message and "save model.state_dict() alone" in message
    assert "weights_only" not in message and "\n" not in message and "\x1b" not in message


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({str(self.file)!r}, 'w')",))


def test_functions_are_named_and_never_called(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "x": Evil(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"objects of type builtins\.eval"):
        read_torch(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("member", "words"), [("w/constants.pkl", "TorchScript"), ("w/models/m.json", "torch.export")])
def test_programs_are_named(member: str, words: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr(member, b"x")
    with pytest.raises(WeightsError, match=words):
        read_torch(tmp_path / "w.pt")
