"""Write into the shipped Programs what their originals said: `python -m benchmarks.originals`.

`vit_tiny_gated` is made by `benchmarks.shipped_program`, which asks its original itself. `vit_tiny_cifar10`: the
figures of reports/reference/usdc.json. The weights stay as they are; only `original` in program.json is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevit.frontends.resolve import SHIPPED, resolve
from edgevit.images.calibration_checks import split_calibration
from edgevit.images.image_set import ImageSet, load_images, number_labels
from edgevit.program.macs import total_macs
from edgevit.program.original import parameters, uncompressed
from edgevit.program.program import Program
from edgevit.program.spec import OriginalEvaluation, OriginalSpec, ProgramSpec
from edgevit.util import strict_json
from edgevit.util.resources import shipped

DENSE = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TRAINED_RUN = "usdc-50-recursive-seed0"


def main() -> None:
    _write("vit_tiny_cifar10", _trained(resolve("vit_tiny_cifar10")))


def judged_sets(spec: ProgramSpec, data: Path) -> tuple[ImageSet, ImageSet]:
    """Return imagenet-val-1000.tar, and the photographs that `make demo` holds out of its calibration."""
    labelled = number_labels(load_images(data / "imagenet-val-1000.tar", spec.image, labelled=True), spec)
    held_out = split_calibration(load_images(shipped("calibration") / "shipped.toml", spec.image))[1]
    assert held_out is not None
    return labelled, held_out


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
