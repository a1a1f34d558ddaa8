"""A Program whose number of tokens follows the image, through the main job: proven, told, and steered by effort."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevit
from edgevit import pipeline
from edgevit.backends.reference import paired
from edgevit.onnx_form.assemble import detached
from edgevit.quantize.plan import plan_quantization
from edgevit.schema.claims import SkipFigures, figures_of
from edgevit.schema.quant_plan import QuantPlan
from edgevit.schema.target import load_target
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
    assert use is not None and [(p.most, p.fewest) for p in use.points] == [(64, 39), (61, 23)]
    assert use.points[0].left.low < use.points[0].left.high and manifest.macs.expected == use.macs.mean
    assert manifest.macs.all_skipped < use.macs.low < use.macs.high < manifest.macs.all_open
    skip = figures_of(manifest.claims, SkipFigures)
    assert skip is not None and (skip.tokens is not None) == (target == "x86-64-onnxruntime")
    guide = (built.folder / "README.md").read_text(encoding="utf-8")
    assert ("OpenVINO prepares kernels for every number" in guide) == (target == "x86-64-openvino")
    with edgevit.open_bundle(built.folder) as bundle:
        image = tiny_images(program.spec, 1)
        few, many = (bundle.run(image, effort=effort).tokens.tolist() for effort in (-np.inf, np.inf))
    assert (few, many) == ([39, 23], [64, 61])
    photo = tmp_path / "photo.png"
    Image.fromarray(image[0]).save(photo)
    ran = subprocess.run(
        [sys.executable, built.folder / "runner/run.py", photo, "--effort", "9", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout)["tokens"] == [64, 61]


@pytest.mark.parametrize("tokens", ["1:20,2:9", "1:0-32@0.85,2:0-32@0.83"])
def test_linears_are_judged_under_the_pairs_of_the_float_model(tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pair among all but equal ones is no drift that a float Linear could take away."""
    program, seen = tiny_program(depth=3, image=(64, 64), dim=64, tokens=tokens), list[np.ndarray]()
    images = tiny_images(program.spec, 6)

    def planned(*given: Any, evaluate: Callable[[QuantPlan | None], np.ndarray], **options: Any) -> QuantPlan:
        plan = plan_quantization(*given, **options)
        seen.append(evaluate(plan))
        return plan

    monkeypatch.setattr(pipeline, "plan_quantization", planned)
    made, plan = pipeline.quantize(program, load_target("x86-64-onnxruntime"), images)
    assert plan is not None
    plain, int8 = paired(*detached(program, gating="open")), paired(*detached(made, plan, gating="open"), exact=True)
    pairs = [plain(image[None], None)[1] for image in images]
    under, own = (
        np.concatenate([int8(i[None], p)[0] for i, p in each])
        for each in (zip(images, pairs, strict=True), [(image, None) for image in images])
    )
    np.testing.assert_allclose(seen[0], under, atol=1e-5)
    assert np.abs(under - own).max() > 1e-3
