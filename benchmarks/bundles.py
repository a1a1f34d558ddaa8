"""Build the bundle of a Program that is compressed already, as `edgevit build` does; every verifier runs."""

from __future__ import annotations

from pathlib import Path

from edgevit.images.image_set import ImageSet
from edgevit.pipeline import Built, build
from edgevit.program.original import weights_digest
from edgevit.program.program import Program
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target


def build_bundle(
    program: Program, target: Target, calibration: ImageSet, folder: Path, *, evaluation: ImageSet | None = None
) -> Built:
    """The bundle in `folder`, calibrated with `calibration` and judged on `evaluation` where it is given."""
    recipe = Recipe(
        model=program.spec.name,
        weights_sha256=weights_digest(program),
        prune=0.0,
        gate=1.0,
        seed=0,
        calibration=calibration.source.name,
        calibration_images=len(calibration),
        calibration_sha256=calibration.digest,
    )
    return build(program, target, calibration, folder, recipe=recipe, evaluation=evaluation)
