from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.compress.tokens import repair as module
from edgevit.compress.tokens.drift import drift
from edgevit.compress.tokens.repair import repair
from edgevit.program.program import Program
from edgevit.program.tokens import read_plan, with_merges
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

torch.set_num_threads(1)


def _merged(program: Program) -> Program:
    return program.with_weights({}, with_merges(program.spec, read_plan("1:4,2:3", program.spec)))


def _drift(dense: Program, program: Program, images: np.ndarray) -> float:
    with torch.no_grad():
        expected, got = (Vit(p)(normalise(dense.spec, images), trim=True) for p in (dense, program))
    return drift(dense.spec, expected, got)


def test_a_repair_brings_the_logits_nearer_on_fresh_images() -> None:
    dense = tiny_program(depth=4)
    repaired = repair(_merged(dense), dense, tiny_images(dense.spec, 160))
    assert repaired.helped and repaired.after < repaired.before and repaired.images == 32
    fresh = tiny_images(dense.spec, 64, seed=9)
    assert _drift(dense, repaired.program, fresh) < _drift(dense, _merged(dense), fresh)
    assert "drift" in repaired.summary and "on 32 images kept apart" in repaired.summary


def test_a_repair_that_does_not_help_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_program(depth=4)
    merged = _merged(dense)
    spoilt = merged.with_weights({"b02_ffn.fc2.weight": 5 * merged.weights["b02_ffn.fc2.weight"]})
    monkeypatch.setattr(module, "refit", lambda *_: spoilt)
    repaired = repair(merged, dense, tiny_images(dense.spec, 8))
    assert repaired.program is merged and not repaired.helped and repaired.summary.startswith("output linears left")
