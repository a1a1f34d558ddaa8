from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.gate.repair import repair_gates
from edgevit.program.program import Program
from tests.tiny import tiny_images, tiny_program


def _gated(dense: Program, closed: str) -> Program:
    gated = attach_gates(dense)
    biases = {
        f"{b.name}.gate.bias": np.full(1, -1.0 if b.name == closed else 1.0, np.float32) for b in gated.spec.branches
    }
    return gated.with_weights(biases)


def test_gates_that_skip_nothing_change_no_weight() -> None:
    dense = tiny_program(depth=2)
    gated = _gated(dense, "")
    repaired = repair_gates(gated, dense, tiny_images(dense.spec, 20), lambda one: one)
    assert all(np.array_equal(repaired.weights[name], array) for name, array in gated.weights.items())


def test_a_repair_that_helps_little_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_program(depth=2)
    gated, images = _gated(dense, "b00_ffn"), tiny_images(dense.spec, 20)
    repaired = repair_gates(gated, dense, images, lambda one: one)
    assert not np.array_equal(repaired.weights["b01_ffn.fc2.weight"], gated.weights["b01_ffn.fc2.weight"])
    monkeypatch.setattr(import_module("edgevit.compress.gate.repair"), "WORTH_REPAIR", 0.0)
    assert repair_gates(gated, dense, images, lambda one: one) is gated
