"""Which pairs of tokens a run merged: the model of the build once more, with its choices as outputs."""

from __future__ import annotations

import numpy as np

from edgevit.backends import NO_TOKENS, Answer, Build, Merged
from edgevit.backends import openvino as runtime
from edgevit.backends.given_pairs import pair_outputs, telling_pairs, told_pairs
from edgevit.backends.inputs import feed
from edgevit.verify.pairs import Pairs


def merged(build: Build) -> Merged:
    """Return a function that tells the pairs that a run merged."""
    target, places = build.target, pair_outputs(build.model)
    request = runtime.infer_request(
        telling_pairs(build.model),
        arch=target.arch,
        threads=target.threads,
        precision=target.inference_precision,
        weight_bits=target.weight_bits,
    )
    asked = ["logits", "gates", *(name for pair in places for name in pair)]
    spec, counts = build.program.spec, build.program.spec.adaptive
    shape = (1, spec.image.height, spec.image.width, 3)

    def run(image: np.ndarray, effort: float) -> tuple[Answer, tuple[Pairs, ...]]:
        found = request.infer(feed(image, effort, shape=shape, gated=spec.steered))
        values = {name: np.array(found[name]) for name in [*asked, *["tokens"][:counts]]}
        return Answer(values["logits"], values["gates"], values.get("tokens", NO_TOKENS)), told_pairs(places, values)

    return run
