"""Which pairs of tokens a run merged: the model of the build once more, with its choices as outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgevit.backends import NO_TOKENS, Answer, Build, Merged
from edgevit.backends import onnxruntime as runtime
from edgevit.backends.given_pairs import pair_outputs, telling_pairs, told_pairs
from edgevit.backends.inputs import feed
from edgevit.backends.onnxruntime import memory
from edgevit.backends.onnxruntime.heads import fuse
from edgevit.verify.pairs import Pairs


def merged(build: Build) -> Merged:
    """Return a function that tells the pairs that a run merged."""
    fused, _ = fuse(telling_pairs(build.model), arch=build.target.arch)
    model, places = runtime.localise(fused), pair_outputs(build.model)
    configured = runtime.options(build.target.threads, build.target.weight_bits)
    memory.configure(configured)
    session: Any = runtime.session(model.SerializeToString(), configured)
    image_of = {value.name: value for value in [*session.get_inputs(), *session.get_overridable_initializers()]}
    shape, gated = tuple(image_of["image"].shape), "effort" in image_of
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray, effort: float) -> tuple[Answer, tuple[Pairs, ...]]:
        values = dict(zip(names, session.run(names, feed(image, effort, shape=shape, gated=gated)), strict=True))
        answer = Answer(values["logits"], values["gates"], values.get("tokens", NO_TOKENS))
        return answer, told_pairs(places, values)

    return run
