"""How tests build a tiny random Program: its images, a target that is lenient with it, and what the manifest says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevit import pipeline
from edgevit.images.image_set import ImageSet
from edgevit.program.program import Program
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target, load_target
from tests.tiny import tiny_images

RECIPE = Recipe(
    model="tiny",
    weights_sha256="0" * 64,
    prune=0.0,
    gate=1.0,
    seed=0,
    calibration="random",
    calibration_images=8,
    calibration_sha256="0" * 64,
)


def image_set(program: Program, count: int = 8, *, labels: bool = False) -> ImageSet:
    """Return random images of a Program's size, if asked with classes by turns."""
    images = tiny_images(program.spec, count)
    classes = np.arange(count, dtype=np.int64) % program.spec.head.classes if labels else None
    return ImageSet(
        images=images,
        labels=classes,
        names=tuple(f"{i}.png" for i in range(count)),
        unreadable=(),
        digest="0" * 64,
        source=Path("random"),
    )


def lenient(name: str) -> Target:
    """A random model's logits are near ties: what int8 costs it says nothing, so its limits are opened."""
    return replace(load_target(name), min_agreement=0.0, max_top1_drop=1.0)


def build(program: Program, folder: Path, target: str = "x86-64-onnxruntime", **options: object) -> pipeline.Built:
    """Build a Program for a target whose limits on accuracy are opened, see `lenient`."""
    return pipeline.build(program, lenient(target), image_set(program), folder, recipe=RECIPE, **options)  # type: ignore[arg-type]
