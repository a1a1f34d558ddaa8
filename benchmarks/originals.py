"""Write into the shipped Programs what their originals said: `python -m benchmarks.originals`.

`vit_tiny_gated`: the dense vit_tiny of EDGEVIT_DATA answers imagenet-val-1000.tar and the photographs that `make demo`
holds out of its calibration. `vit_tiny_cifar10`: the figures of reports/reference/usdc.json. The weights stay as they
are; only `original` in program.json is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevit import pipeline
from edgevit.frontends.resolve import SHIPPED, resolve
from edgevit.images.calibration_checks import split_calibration
from edgevit.images.image_set import load_images, number_labels
from edgevit.program.macs import total_macs
from edgevit.program.original import as_original, parameters, uncompressed, with_original
from edgevit.program.program import Program
from edgevit.program.spec import OriginalEvaluation, OriginalSpec
from edgevit.util import strict_json
from edgevit.util.resources import shipped

DENSE = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
GATED_STEPS = (
    "pruned by 10% of its MACs without labels, on 300 images",
    "gated to 95% of the MACs left without labels, on 300 images",
)
TRAINED_RUN = "usdc-50-recursive-seed0"


def main() -> None:
    data = Path(os.environ["EDGEVIT_DATA"])
    _write("vit_tiny_gated", _gated(resolve("vit_tiny_gated"), data))
    _write("vit_tiny_cifar10", _trained(resolve("vit_tiny_cifar10")))


def _gated(program: Program, data: Path) -> OriginalSpec:
    """What dense ViT-Ti says, and the shipped Program beside it."""
    weights, origin = data / f"{DENSE}.safetensors", program.spec.origin
    if hashlib.sha256(weights.read_bytes()).hexdigest() != origin["weights_sha256"]:
        raise SystemExit(f"{weights} is not the checkpoint that vit_tiny_gated was compressed from")
    dense, image = resolve(DENSE, weights=weights), program.spec.image
    labelled = number_labels(load_images(data / "imagenet-val-1000.tar", image, labelled=True), program.spec)
    demo = load_images(shipped("calibration") / "shipped.toml", image)
    held_out = split_calibration(demo)[1]
    assert held_out is not None
    program = with_original(program, replace(as_original(dense), steps=GATED_STEPS))
    for judged in (labelled, held_out):
        program = pipeline.compare(program, dense, judged)
    assert program.spec.original is not None
    return program.spec.original


def _trained(program: Program) -> OriginalSpec:
    """What the reference report says of the dense model and of the run that ships; its dense weights do not ship."""
    report = Path(__file__).parents[1] / "reports/reference/usdc.json"
    rows = {row["name"]: row for row in json.loads(report.read_text(encoding="utf-8"))["rows"]}
    spec, before, after = program.spec, rows["dense"], rows[TRAINED_RUN]
    expected, static = (float(spec.origin[f"compressed_{part}_macs"]) for part in ("expected", "static"))
    said = OriginalEvaluation(
        source="cifar10-test.npz",
        images=before["images"],
        classes=spec.head.classes,
        original_top1=before["top1"]["1"],
        top1=after["top1"]["1"],
    )
    return OriginalSpec(
        name=f"{spec.name}, fine-tuned on CIFAR-10",
        weights_sha256="",
        macs=total_macs(uncompressed(spec)),
        parameters=parameters(uncompressed(spec)),
        steps=(f"trained to {expected:.0%} of its MACs expected and {static:.0%} loaded, on cifar10-train.npz",),
        evaluations=(said,),
    )


def _write(name: str, original: OriginalSpec) -> None:
    path = SHIPPED / name / "program.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    document["spec"]["original"] = strict_json.to_data(original)
    strict_json.write_atomic(path, strict_json.dumps(document))
    for said in original.evaluations:
        print(name, said.images, said.source, said.original_top1, said.top1, said.agreement)


if __name__ == "__main__":
    main()
