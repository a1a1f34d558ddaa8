"""A Program whose number of tokens follows the image, built for TVM: proven, told, and steered by effort."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import edgevit
from edgevit.backends.targets import load_target
from edgevit.build.prediction import predict
from tests.backends.tvm.available import import_or_skip
from tests.building import build
from tests.tiny import tiny_images, tiny_program

import_or_skip()


def test_tokens_that_follow_the_image_are_built_and_every_claim_holds(tmp_path: Path) -> None:
    program = tiny_program(gated=True, skip=True, depth=4, image=(64, 64), tokens="1:0-32@0.85,2:3-30@0.8")
    built = build(program, tmp_path / "bundle", "x86-64-v3-tvm")
    manifest = built.manifest
    assert all(claim.held for claim in manifest.claims)
    assert [output.name for output in manifest.outputs] == ["logits", "gates", "tokens"]
    use = manifest.tokens
    assert use is not None and [(p.most, p.fewest) for p in use.points] == [(64, 39), (61, 23)]
    assert use.points[0].left.low < use.points[0].left.high
    assert predict(program, load_target("x86-64-v3-tvm")).bound_bytes == manifest.bound.bound_bytes
    with edgevit.open_bundle(built.folder) as bundle:
        image = tiny_images(program.spec, 1)
        few, many = (bundle.run(image, effort=effort).tokens.tolist() for effort in (-np.inf, np.inf))
    assert (few, many) == ([39, 23], [64, 61])
    photo = tmp_path / "photo.png"
    Image.fromarray(image[0]).save(photo)
    command = [sys.executable, str(built.folder / "runner/run.py"), str(photo), "--effort", "9", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["tokens"] == [64, 61]
