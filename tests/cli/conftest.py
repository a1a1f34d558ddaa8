"""A tiny model, a target without limits and a few photographs, as `edgevit build` takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.program.program import save_program
from tests.tiny import tiny_program


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "program"
    save_program(tiny_program(gated=True, skip=True), folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The ONNX Runtime target without accuracy limits: a random model's logits are near ties."""
    from edgevit.util.resources import shipped

    text = (shipped("targets") / "x86-64-onnxruntime.toml").read_text()
    lines = [
        line for line in text.splitlines() if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))
    ]
    path = tmp_path / "lenient.toml"
    path.write_text('name = "lenient"\nmin_agreement = 0.0\nmax_top1_drop = 1.0\n' + "\n".join(lines))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder
