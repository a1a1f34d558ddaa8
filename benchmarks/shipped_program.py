"""Make the Program that ships, vit_tiny_gated, from the dense vit_tiny: `python -m benchmarks.shipped_program`.

EDGEVIT_DATA holds the weights, imagenet-sample-1000.tar (300 unlabelled images of it calibrate) and
imagenet-val-1000.tar (judges). Tokens are merged, as many as the image allows, to 0.64 of the MACs on average; no
weight is trained. What the dense model answers is kept in the Program (`benchmarks.originals`). About five minutes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.originals import DENSE, judged_sets
from edgevit import pipeline
from edgevit.api.load import load
from edgevit.compress.budgets import Budgets
from edgevit.frontends.resolve import SHIPPED
from edgevit.images.image_set import load_images
from edgevit.program.program import load_program, save_program

NAME, SHARE, CALIBRATION = "vit_tiny_gated", 0.64, 300


def main() -> None:
    data = Path(os.environ["EDGEVIT_DATA"])
    dense = load(DENSE, weights=data / f"{DENSE}.safetensors", labels="imagenet-1k", license="apache-2.0")
    origin = {key: value for key, value in dense.spec.origin.items() if key != "notes"}  # nothing of it is assumed here
    dense = dense.with_weights({}, replace(dense.spec, origin=origin))
    images = load_images(data / "imagenet-sample-1000.tar", dense.spec.image, limit=CALIBRATION).images
    made = pipeline.compress(dense, images, Budgets(merged=SHARE, per_image=True), say=print)
    save_program(made, SHIPPED / NAME, storage="float16", force=True)
    program = load_program(SHIPPED / NAME)  # judged with the weights that ship
    for judged in judged_sets(dense.spec, data):
        program = pipeline.compare(program, dense, judged)
        assert program.spec.original is not None
        print(program.spec.original.evaluations[-1])
    save_program(program, SHIPPED / NAME, storage="float16", force=True)


if __name__ == "__main__":
    main()
