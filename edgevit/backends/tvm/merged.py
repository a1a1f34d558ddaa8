"""Which pairs of tokens a run merged, read from the memory of the library that ships: every point leaves them there."""

from __future__ import annotations

import json

import numpy as np

from edgevit.backends import Answer, Build, Merged
from edgevit.backends import tvm as runtime
from edgevit.backends.tvm.run.process import foreign
from edgevit.backends.tvm.run.runner import MANIFEST, LibraryRunner, load, read_manifest
from edgevit.program.tokens import halves
from edgevit.verify.pairs import Pairs


def merged(build: Build) -> Merged | None:
    """Return the build as a function that tells the pairs that a run merged; None where it cannot run here."""
    if foreign(read_manifest(build.folder / MANIFEST)):
        return None
    spec, runner = build.program.spec, load(build.folder, build.target.threads)
    assert isinstance(runner, LibraryRunner)
    places = json.loads((build.folder / runtime.PAIRS).read_text(encoding="utf-8"))

    def run(image: np.ndarray, effort: float) -> tuple[Answer, tuple[Pairs, ...]]:
        answer, found, patches = runner.answer(image, effort), list[Pairs](), spec.patches
        for index, (point, (into, order)) in enumerate(zip(spec.merges, places, strict=True)):
            first, count = halves(patches)[0], patches - int(answer.tokens[index]) if spec.adaptive else point.count
            partners, ranks = (runner.memory[at : at + 4 * first].view(np.float32) for at in (into, order))
            found.append(Pairs(into=partners.astype(np.int64), merged=np.flatnonzero(ranks < count)))
            patches -= count
        return answer, tuple(found)

    return run
