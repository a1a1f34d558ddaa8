"""A Program whose number of tokens follows the image, through the main job: proven, told, and steered by effort."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgevit
from edgevit.schema.claims import SkipFigures, figures_of
from tests.building import build
from tests.tiny import tiny_images, tiny_program


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("target", ["x86-64-onnxruntime", "x86-64-openvino"])
def test_tokens_that_follow_the_image_are_built_and_every_claim_holds(tmp_path: Path, target: str, gated: bool) -> None:
    program = tiny_program(gated=gated, depth=4, image=(64, 64), tokens="1:0-32@0.85,2:3-30@0.8")
    built = build(program, tmp_path / "bundle", target)
    manifest = built.manifest
    assert all(claim.held for claim in manifest.claims if (target, claim.name) != ("x86-64-openvino", "bound"))
    assert [output.name for output in manifest.outputs] == ["logits", "gates", "tokens"]
    assert manifest.effort is not None and "cosine above which tokens merge" in manifest.effort.meaning
    use = manifest.tokens
    assert use is not None and [(p.most, p.fewest) for p in use.points] == [(64, 32), (61, 16)]
    assert use.points[0].left.low < use.points[0].left.high and manifest.macs.expected == use.macs.mean
    assert manifest.macs.all_skipped < use.macs.low < use.macs.high < manifest.macs.all_open
    skip = figures_of(manifest.claims, SkipFigures)
    assert skip is not None and (skip.tokens is not None) == (target == "x86-64-onnxruntime")
    guide = (built.folder / "README.md").read_text(encoding="utf-8")
    assert ("OpenVINO prepares kernels for every number" in guide) == (target == "x86-64-openvino")
    with edgevit.open_bundle(built.folder) as bundle:
        image = tiny_images(program.spec, 1)
        few, many = (bundle.run(image, effort=effort).tokens.tolist() for effort in (-np.inf, np.inf))
    assert (few, many) == ([32, 16], [64, 61])
    photo = tmp_path / "photo.png"
    Image.fromarray(image[0]).save(photo)
    ran = subprocess.run(
        [sys.executable, built.folder / "runner/run.py", photo, "--effort", "9", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout)["tokens"] == [64, 61]
