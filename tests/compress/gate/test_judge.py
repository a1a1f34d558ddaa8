"""Answers at a batch size: one by one as the device decides, in batches as training shared decisions."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from edgevit.compress.gate.judge import CHUNK, answers
from edgevit.compress.gate.threshold import calibrate_thresholds, expected_macs, open_rates
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program


def gated(seed: int = 0) -> Program:
    program = tiny_program(seed, gated=True, skip=True, depth=3)
    return calibrate_thresholds(program, tiny_images(program.spec, 64, seed=5), 0.7)


@torch.no_grad()
def test_one_by_one_is_what_a_device_decides() -> None:
    program = gated()
    images = tiny_images(program.spec, 40)
    found = answers(program, images)
    ran = open_rates(program, images)
    assert np.array_equal(found.ran, ran)
    assert 0 < ran.mean() < 1
    assert found.macs == pytest.approx(expected_macs(program.spec, ran))
    model = Vit(program).eval()
    wanted = [model(x, model.hard_gates())[0].numpy() for x in batches(program.spec, images, 1)]
    np.testing.assert_allclose(found.logits, np.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("batch", [2, 5])
def test_a_batch_shares_its_decisions(batch: int) -> None:
    program = gated()
    found = answers(program, tiny_images(program.spec, 61), batch=batch)
    starts = range(0, 61, batch)
    assert all((found.ran[s : s + batch] == found.ran[s]).all() for s in starts)
    assert len({tuple(found.ran[s]) for s in starts}) > 1


@torch.no_grad()
def test_a_batch_opens_what_the_mean_of_its_logits_opens() -> None:
    program = gated()
    images = tiny_images(program.spec, 8)
    found = answers(program, images, batch=8)
    model, decided = Vit(program).eval(), []

    def decide(index: int, x: torch.Tensor) -> torch.Tensor:
        branch = program.spec.branches[index]
        assert branch.gate is not None
        decided.append(bool(model.gate_logit(branch, x).mean() > branch.gate.threshold))
        return torch.full((len(x),), float(decided[-1]))

    logits = model(batches(program.spec, images, 8)[0], decide)
    assert found.ran[0].tolist() == decided
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-5)


def test_batches_do_not_depend_on_how_many_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = gated()
    images = tiny_images(program.spec, 30)
    whole = answers(program, images, batch=4)
    assert len(images) < CHUNK
    monkeypatch.setattr(import_module("edgevit.compress.gate.judge"), "CHUNK", 9)
    parts = answers(program, images, batch=4)
    assert np.array_equal(whole.ran, parts.ran)
    np.testing.assert_allclose(whole.logits, parts.logits, atol=1e-5)


def test_without_gates_everything_runs_that_is_left() -> None:
    program = tiny_program(removed=("b01_ffn",), skip=True)
    found = answers(program, tiny_images(program.spec, 5), batch=2)
    assert found.ran.tolist() == [[True, True, True, False]] * 5
    assert found.macs == total_macs(program.spec)


def test_top1_is_the_share_of_right_names() -> None:
    program = gated()
    found = answers(program, tiny_images(program.spec, 10))
    labels = found.logits.argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % program.spec.head.classes
    assert found.top1(labels) == pytest.approx(0.7)
