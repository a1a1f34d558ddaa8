from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.checkpoint_forms import Subject, jax_arrays
from edgevit.errors import WeightsError
from edgevit.frontends.checkpoint import load_checkpoint
from edgevit.frontends.timm_import import timm
from tests.frontends.real import enliven

OPTIONS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 32}


def subject() -> Subject:
    module = enliven(timm.create_model("vit_tiny_patch16_224", **OPTIONS))
    return Subject(title="", name="vit_tiny_patch16_224", options=OPTIONS, module=module)


@pytest.mark.parametrize("root", ["", "opt/target/", "params/"])
def test_arrays_come_out_as_they_went_in(root: str, tmp_path: Path) -> None:
    made = subject()
    np.savez(tmp_path / "w.npz", **{root + n: a for n, a in jax_arrays(made).items()})  # type: ignore[arg-type]
    state = load_checkpoint(tmp_path / "w.npz")
    assert state.keys() == made.state().keys()
    assert all(torch.equal(state[n], v) for n, v in made.state().items())


def test_they_are_what_timm_itself_reads(tmp_path: Path) -> None:
    made = subject()
    np.savez(tmp_path / "w.npz", **jax_arrays(made))  # type: ignore[arg-type]
    module = timm.create_model("vit_tiny_patch16_224", **OPTIONS)
    module.load_pretrained(str(tmp_path / "w.npz"))
    state = load_checkpoint(tmp_path / "w.npz")
    assert all(torch.equal(state[n], v) for n, v in module.state_dict().items())


def test_other_files_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", x=np.zeros(3))
    with pytest.raises(WeightsError, match="no ViT of the JAX release"):
        load_checkpoint(tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.array([None])})  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="not a readable"):
        load_checkpoint(tmp_path / "w.npz")
    (tmp_path / "w.npz").write_bytes(b"PK broken")
    with pytest.raises(WeightsError, match="not a readable"):
        load_checkpoint(tmp_path / "w.npz")
