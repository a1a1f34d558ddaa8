from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.gate.initial import measure_skips
from edgevit.compress.gate.threshold import expected_macs, fixed_macs, open_rates
from edgevit.compress.gate.train import train_gates
from edgevit.compress.training.in_memory import InMemory
from edgevit.compress.training.loop import StageSettings, fit
from edgevit.compress.usdc.hooks import StageHooks
from edgevit.errors import BudgetError, ImagesError
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit
from tests.tiny import tiny_images, tiny_program


@torch.no_grad()
def _logits(program: Program, images: np.ndarray, *, hard: bool) -> torch.Tensor:
    model = Vit(program)
    return model.forward(batches(program.spec, images, len(images))[0], model.hard_gates() if hard else None)


def _divergence(program: Program, dense: Program, images: np.ndarray) -> float:
    p, q = _logits(dense, images, hard=False).log_softmax(-1), _logits(program, images, hard=True).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take gates as they learned, whatever branches closed one by one would give."""
    train = import_module("edgevit.compress.gate.train")
    monkeypatch.setattr(train, "gated_drift", lambda *_: 0.0)
    monkeypatch.setattr(train, "_misses", lambda *_: False)


@pytest.fixture
def unrepaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find no repair worth its weights."""
    monkeypatch.setattr(import_module("edgevit.compress.gate.repair"), "WORTH_REPAIR", 0.0)


@pytest.mark.usefixtures("learned", "unrepaired")
def test_only_gates_and_skip_rows_are_new() -> None:
    program = tiny_program(depth=2)
    trained = train_gates(program, tiny_images(program.spec, 16), 0.8, epochs=2)
    assert all(np.array_equal(trained.weights[n], a) for n, a in program.weights.items())
    added = set(trained.weights) - set(program.weights)
    assert added == {f"{b.name}.{part}" for b in program.spec.branches for part in ("gate.weight", "gate.bias", "skip")}
    images = tiny_images(program.spec)
    torch.testing.assert_close(_logits(trained, images, hard=False), _logits(program, images, hard=False))


@pytest.mark.parametrize("seed", [3, 5])
@pytest.mark.usefixtures("learned")
def test_what_skipped_branches_leave_missing_is_fitted_back(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program(depth=4, seed=seed)
    images, fresh = tiny_images(program.spec, 240), tiny_images(program.spec, 64, seed=9)
    repaired = train_gates(program, images, 0.7, epochs=1)
    monkeypatch.setattr(import_module("edgevit.compress.gate.repair"), "WORTH_REPAIR", 0.0)
    bare = train_gates(program, images, 0.7, epochs=1)
    changed = {name for name, array in program.weights.items() if not np.array_equal(repaired.weights[name], array)}
    assert changed and all(name.split(".")[1] in ("proj", "fc2") for name in changed)
    assert _divergence(repaired, program, fresh) < 0.85 * _divergence(bare, program, fresh)
    spent = (expected_macs(one.spec, open_rates(one, fresh)) / total_macs(one.spec) for one in (repaired, bare))
    assert all(macs == pytest.approx(0.7, abs=0.05) for macs in spent)


def test_gates_learn_in_the_loop_of_all_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images from memory and a controller of gates go in; of the model nothing but gates and skip rows may learn."""
    seen: list[tuple[object, object, set[str]]] = []

    def spied(model: Vit, source: object, settings: StageSettings, hooks: object, **others: Any) -> None:
        learning = {n.replace("/", ".").split(".", 1)[1] for n, p in model.arrays.items() if p.requires_grad}
        seen.append((source, hooks, learning))
        fit(model, source, settings, hooks, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(import_module("edgevit.compress.gate.train"), "fit", spied)
    program = tiny_program(depth=2, removed=("b00_mhsa",), skip=True)
    trained = train_gates(program, tiny_images(program.spec, 16), 0.8, epochs=1)
    ((source, hooks, learning),) = seen
    assert isinstance(source, InMemory) and isinstance(hooks, StageHooks)
    assert hooks.gates is not None and hooks.masks is None
    assert learning == {"gate.weight", "gate.bias", "skip"}
    assert np.array_equal(trained.weights["b00_mhsa.skip"], program.weights["b00_mhsa.skip"])


@pytest.mark.parametrize("budget", [0.7, 0.85])
def test_the_budget_is_met_on_images_not_trained_on(budget: float) -> None:
    program = tiny_program(depth=4)
    trained = train_gates(program, tiny_images(program.spec, 96), budget, epochs=3)
    fresh = tiny_images(program.spec, 200, seed=7)
    spent = expected_macs(trained.spec, open_rates(trained, fresh)) / total_macs(trained.spec)
    assert spent == pytest.approx(budget, abs=0.05)


def test_a_branch_that_does_nothing_is_skipped_first() -> None:
    program = tiny_program(depth=3)
    silent = program.with_weights({n: 0 * program.weights[n] for n in ("b01_ffn.fc2.weight", "b01_ffn.fc2.bias")})
    images = tiny_images(program.spec, 64)
    losses = measure_skips(attach_gates(silent), images).losses.mean(axis=0)
    assert np.argmin(losses) == 3 and losses[3] < 1e-6
    trained = train_gates(silent, images, 0.85, epochs=2)
    rates = open_rates(trained, images).mean(axis=0)
    assert rates[3] == 0 and rates[[0, 1, 2, 4]].min() > 0.5


def _misled(program: Program, images: np.ndarray) -> Program:
    """Return gates that close the branches that matter most, with skip rows of 0."""
    gated = attach_gates(program)
    lost = measure_skips(gated, images).losses.mean(axis=0)
    wrong = {b.name: 0.3 * (lost.mean() - v) / lost.std() for b, v in zip(gated.spec.branches, lost, strict=True)}
    return gated.with_weights({f"{n}.gate.bias": np.array([v], np.float32) for n, v in wrong.items()})


@pytest.mark.usefixtures("learned", "unrepaired")
def test_training_alone_finds_good_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from gates that prefer the wrong branches, training lowers the loss at the same budget."""
    program = tiny_program(depth=3, seed=5)
    images, fresh = tiny_images(program.spec, 96), tiny_images(program.spec, 64, seed=5)
    started = _misled(program, images)
    monkeypatch.setattr(import_module("edgevit.compress.gate.train"), "predicted_gates", lambda *_: started)
    trained, untrained = (train_gates(program, images, 0.75, epochs=e) for e in (6, 0))
    assert _divergence(trained, program, fresh) < 0.5 * _divergence(untrained, program, fresh)


def test_gates_that_learned_nothing_give_way_to_branches_closed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    train = import_module("edgevit.compress.gate.train")
    program = tiny_program(depth=3, seed=5)
    images, fresh = tiny_images(program.spec, 96), tiny_images(program.spec, 64, seed=5)
    started = _misled(program, images)
    monkeypatch.setattr(train, "predicted_gates", lambda *_: started)
    taken = train_gates(program, images, 0.75, epochs=0)
    monkeypatch.setattr(train, "gated_drift", lambda *_: 0.0)
    monkeypatch.setattr(train, "_misses", lambda *_: False)
    learned = train_gates(program, images, 0.75, epochs=0)
    assert _divergence(taken, program, fresh) < 0.75 * _divergence(learned, program, fresh)
    spent = expected_macs(taken.spec, open_rates(taken, fresh)) / total_macs(taken.spec)
    assert spent == pytest.approx(0.75, abs=0.05)


def test_gates_far_from_the_budget_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would drift less, as they skip less."""
    train = import_module("edgevit.compress.gate.train")

    def open_all(started: Program, *_: object) -> Program:
        biases = {f"{b.name}.gate.bias": np.ones(1, np.float32) for b in started.spec.branches}
        return started.with_weights(biases)  # one logit for all: thresholds can only close every branch or none

    monkeypatch.setattr(train, "predicted_gates", open_all)
    program = tiny_program(depth=3)
    trained = train_gates(program, tiny_images(program.spec, 48), 0.75, epochs=0)
    assert not np.array_equal(trained.weights["b00_ffn.gate.bias"], np.ones(1, np.float32))


@pytest.mark.parametrize("seed", [3, 5])
def test_trained_gates_lose_less_than_skipping_as_many_at_random(seed: int) -> None:
    program = tiny_program(depth=3, seed=seed)
    images, fresh = tiny_images(program.spec, 96), tiny_images(program.spec, 64, seed=5)
    trained = train_gates(program, images, 0.75)
    skipped = (~open_rates(trained, fresh)).sum(axis=1).mean()
    rng, model = np.random.default_rng(0), Vit(trained)
    closed = [rng.permutation(6)[: int(skipped + rng.random())] for _ in fresh]
    ran = torch.tensor([[float(i not in c) for i in range(6)] for c in closed])
    with torch.no_grad():
        batch = batches(program.spec, fresh, 64)[0]
        p, q = model(batch).log_softmax(-1), model(batch, lambda i, x: ran[:, i]).log_softmax(-1)
    at_random = float((p.exp() * (p - q)).sum(-1).mean())
    assert _divergence(trained, program, fresh) < 0.85 * at_random


@pytest.mark.usefixtures("learned")
def test_gates_look_at_the_image() -> None:
    """With weights that learn, some branch is open for some images and closed for others."""
    program = tiny_program(depth=3, seed=3)
    images = tiny_images(program.spec, 96)
    rates = open_rates(train_gates(program, images, 0.75, epochs=6), images).mean(axis=0)
    assert ((rates > 0.05) & (rates < 0.95)).any()


@pytest.mark.usefixtures("learned")
def test_the_same_seed_gives_the_same_gates() -> None:
    program = tiny_program()
    images = tiny_images(program.spec, 24)
    one, two, other = (train_gates(program, images, 0.8, epochs=1, seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(one.weights[n], two.weights[n]) for n in one.weights) and one.spec == two.spec
    assert not np.array_equal(one.weights["b00_ffn.gate.weight"], other.weights["b00_ffn.gate.weight"])


def test_gates_with_nothing_to_learn_from_are_refused() -> None:
    """A head of zeros gives the same outputs whatever is skipped."""
    program = tiny_program()
    blind = program.with_weights({"head.weight": np.zeros((32, 10), np.float32)})
    with pytest.raises(BudgetError, match="skipping a branch of tiny changes no output on any of 12 images"):
        train_gates(blind, tiny_images(program.spec, 16), 0.8)


def test_gates_that_only_come_near_the_budget_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    program, said = tiny_program(depth=3), list[str]()
    monkeypatch.setattr(import_module("edgevit.compress.usdc.stages"), "check_spent", lambda *_: "near")
    train_gates(program, tiny_images(program.spec, 16), 0.8, epochs=0, say=said.append)
    taken, warning = said
    assert warning == "warning: near"
    assert re.fullmatch(r"gates: .+ are taken; drift on 4 images kept apart: .+ [\d.e-]+, .+ [\d.e-]+", taken)


@pytest.mark.parametrize("budget", [0.0, 0.1, 1.2, -1.0])
def test_a_budget_that_cannot_be_met_is_refused(budget: float) -> None:
    program = tiny_program()
    floor = fixed_macs(attach_gates(program).spec) / total_macs(attach_gates(program).spec)
    assert floor > 0.1
    with pytest.raises(BudgetError, match="choose a budget above"):
        train_gates(program, tiny_images(program.spec), budget)


def test_images_of_another_size_are_refused() -> None:
    program = tiny_program()
    with pytest.raises(ImagesError, match="needs at least one image"):
        train_gates(program, tiny_images(program.spec)[:, :16], 0.8)
