from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.gate.initial import initial_gates, measure_skips, predictor
from edgevit.compress.gate.threshold import expected_macs, open_rates
from edgevit.program.macs import total_macs
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program


def test_the_loss_of_a_skip_is_that_of_the_model_with_the_gate_closed() -> None:
    program = tiny_program(depth=2, gated=True, skip=True)
    images = tiny_images(program.spec, 9)
    losses, model = measure_skips(program, images).losses, Vit(program)
    batch = batches(program.spec, images)[0]
    with torch.no_grad():
        dense = model(batch).log_softmax(-1)
        for index in range(4):
            closed = model(batch, lambda i, x, index=index: torch.full((len(x),), float(i != index))).log_softmax(-1)
            kl = (dense.exp() * (dense - closed)).sum(-1)
            np.testing.assert_allclose(losses[:, index], kl, atol=1e-5)


@pytest.mark.parametrize("tokens", ["1:4,2:3", "1:0-6@0.3,2:0-4@0.3"])
def test_a_skip_is_measured_with_tokens_merged(tokens: str) -> None:
    """Merges follow what the skip changed, and what gates read is weighed as they read it."""
    program = tiny_program(depth=3, gated=True, prefix=0, skip=True, tokens=tokens)
    images = tiny_images(program.spec, 6)
    skips, model = measure_skips(program, images), Vit(program)
    batch = batches(program.spec, images)[0]
    read: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        dense = model(batch, lambda i, x: read.setdefault(i, model.gate_logit(program.spec.branches[i], x)) * 0 + 1)
        for index in range(6):
            closed = model(batch, lambda i, x, index=index: torch.full((len(x),), float(i != index))).log_softmax(-1)
            kl = (dense.softmax(-1) * (dense.log_softmax(-1) - closed)).sum(-1)
            np.testing.assert_allclose(skips.losses[:, index], kl, atol=1e-5)
    name = "b02_ffn.gate"
    logit = skips.inputs[:, 5] @ program.weights[f"{name}.weight"] + program.weights[f"{name}.bias"]
    np.testing.assert_allclose(logit, read[5], atol=1e-3)


def test_what_a_gate_reads_is_what_its_logit_is_made_of() -> None:
    program = tiny_program(depth=2, gated=True, skip=True)
    images = tiny_images(program.spec, 5)
    inputs, model = measure_skips(program, images).inputs, Vit(program)
    weight, bias = program.weights["b00_mhsa.gate.weight"], program.weights["b00_mhsa.gate.bias"]
    with torch.no_grad():
        logit = model.gate_logit(program.spec.branches[0], model.stem(batches(program.spec, images)[0]))
    np.testing.assert_allclose(inputs[:, 0] @ weight + bias, logit, atol=1e-4)


def test_the_predictor_finds_a_linear_rule_and_ignores_noise() -> None:
    rng = np.random.default_rng(0)
    x, truth = rng.standard_normal((80, 20)), rng.standard_normal(20)
    fresh = rng.standard_normal((200, 20))
    weight, bias = predictor(x, x @ truth + 3 + 0.1 * rng.standard_normal(80))
    assert np.corrcoef(fresh @ weight + bias, fresh @ truth)[0, 1] > 0.95
    weight, bias = predictor(x, noise := rng.standard_normal(80))
    assert np.abs(weight).max() < 0.1 and bias == pytest.approx(noise.mean(), abs=0.2)


def test_the_first_gates_spend_about_the_budget() -> None:
    gated = attach_gates(tiny_program(depth=4))
    images = tiny_images(gated.spec, 48)
    first = initial_gates(gated, images, 0.8, 2.0)
    spent = expected_macs(first.spec, open_rates(first, images)) / total_macs(first.spec)
    assert spent == pytest.approx(0.8, abs=0.15)
