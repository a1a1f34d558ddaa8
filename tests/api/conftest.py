"""What the examples of the API work on: a tiny Program, images, a target without accuracy limits, a small bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgevit
from edgevit.program.macs import total_macs
from edgevit.util.resources import shipped
from tests.bundles import sample_bundle
from tests.compressing import dense, photos, recipe
from tests.keys import write_key
from tests.tiny import tiny_images


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    (folder / "photos").mkdir()
    for index, image in enumerate(tiny_images(dense().spec, 24)):
        Image.fromarray(image).save(folder / "photos" / f"{index:02}.png")
    photos(folder / "data")
    lines = (shipped("targets") / "x86-64-onnxruntime.toml").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("min_agreement =", "max_top1_drop =", "name ="))]
    own = ['name = "my-board"', "min_agreement = 0.0", "max_top1_drop = 1.0", *kept]
    (folder / "my-board.toml").write_text("\n".join(own), encoding="utf-8")
    sample_bundle(folder / "out" / "tiny")
    edgevit.profile(folder / "out" / "tiny", runs=3, output=folder / "tiny.json")
    write_key(folder / "my.key")
    recipe(folder / "short.toml", epochs_joint=1, epochs_recover=1)
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what examples name: photos/, data/ of 4 classes, my-board.toml, short.toml, my.key,
    out/tiny, out/tiny.zip and a measurement tiny.json of it."""
    shutil.copytree(prepared, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def names() -> dict[str, Any]:
    """What the examples begin with: `program`, `images` uint8 `[24, 32, 32, 3]`, and `total_macs`."""
    program = dense(gated=False, depth=3)
    return {"edgevit": edgevit, "program": program, "images": tiny_images(program.spec, 24), "total_macs": total_macs}
