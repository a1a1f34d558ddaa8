"""The loop: the same steps whatever their size in parts, wherever it stopped, and never past a number that is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.training.distributed import World
from edgevit.compress.training.loop import (
    FINAL_RATE,
    Plain,
    StageSettings,
    fit,
    make_optimiser,
    rate_factor,
    shrink_images,
    stage_steps,
)
from edgevit.compress.training.teacher import Teacher
from edgevit.compress.training.tokens import Streams
from edgevit.errors import TrainingError
from edgevit.program.program import Program
from edgevit.torch_form.vit import Vit, normalise
from tests.tiny import tiny_images, tiny_program

BATCH, IMAGES = 8, 44  # five batches an epoch and a remainder


class Memory:
    """Batches of a few images, in an order that depends on the epoch; `broken` is the batch that is not a number."""

    def __init__(self, program: Program, batch: int = BATCH, broken: int = -1) -> None:
        self.steps, self.batch, self.broken = IMAGES // batch, batch, broken
        self.images = normalise(program.spec, tiny_images(program.spec, IMAGES))
        self.labels = torch.arange(IMAGES) % program.spec.head.classes
        self.given = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(IMAGES))
        for step in range(start, self.steps):
            chosen = order[step * self.batch : (step + 1) * self.batch]
            images = self.images[chosen]
            if self.given == self.broken:
                images = images * float("nan")
            self.given += 1
            yield images, self.labels[chosen]


def stage(**numbers: Any) -> StageSettings:
    settings = StageSettings(
        name="recover",
        epochs=3,
        rate=2e-3,
        batch=BATCH,
        accumulate=1,
        warmup=0.2,
        weight_decay=0.05,
        clip=1.0,
        ema=0.9,
        label_smoothing=0.0,
        teacher=0.0,
        temperature=2.0,
        tokens=0.0,
        gate_weight_rate=3e-3,
        gate_bias_rate=2e-2,
        skip_rate=4e-3,
        bfloat16=False,
        checkpoint_seconds=1e9,
    )
    return replace(settings, **numbers)


class Run:
    """One call of `fit`, and what it told."""

    def __init__(
        self,
        program: Program,
        settings: StageSettings,
        *,
        source: Memory | None = None,
        resume: dict[str, Any] | None = None,
        teacher: Program | None = None,
        hooks: Plain | None = None,
    ) -> None:
        self.figures: list[dict[str, float]] = []
        self.saved: dict[int, dict[str, Any]] = {}
        self.model = Vit(program)
        self.error: TrainingError | None = None
        try:
            fit(
                self.model,
                source or Memory(program, settings.batch // settings.accumulate),
                settings,
                hooks or Plain(),
                teacher=None if teacher is None else Teacher(Vit(teacher), tokens=settings.tokens > 0),
                world=World(),
                report=lambda step, total, speed, figures: self.figures.append({"step": step, **figures}),
                save=lambda step, state: self.saved.__setitem__(step, copy.deepcopy(state)),
                resume=resume,
            )
        except TrainingError as error:
            self.error = error

    def column(self, name: str) -> np.ndarray:
        return np.array([figures[name] for figures in self.figures])


def test_training_learns_what_it_is_shown() -> None:
    found = Run(tiny_program(), stage(epochs=12, rate=4e-3)).column("loss")
    assert found[-5:].mean() < 0.5 * found[:5].mean()


def test_accumulated_parts_are_one_step() -> None:
    program = tiny_program()
    whole, parts = Run(program, stage()), Run(program, stage(accumulate=2))
    assert len(whole.figures) == len(parts.figures) == 15
    for name in ("loss", "gradient"):
        np.testing.assert_allclose(parts.column(name), whole.column(name), rtol=2e-4)
    images = Memory(program).images
    torch.testing.assert_close(parts.model(images), whole.model(images), rtol=1e-3, atol=1e-3)


def test_a_remainder_of_an_epoch_is_left_out() -> None:
    program = tiny_program()
    settings = stage(batch=16, accumulate=2)
    source = Memory(program, 8)
    assert stage_steps(source, settings) == 6
    run = Run(program, settings, source=source)
    assert len(run.figures) == 6
    assert source.given <= 15


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in ("model", "optimiser", "ema", "step")),
        ("model", {}),
        ("model", {"a": torch.zeros(1)}),
        ("optimiser", {"state": {}, "param_groups": []}),
        ("ema", {}),
        ("step", -1),
        ("step", "x"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(key: str, value: object) -> None:
    program, settings = tiny_program(), stage(checkpoint_seconds=0.0)
    state = Run(program, settings).saved[1]
    error = Run(program, settings, resume={**state, key: value}).error
    assert error is not None and "train anew without --resume" in str(error)


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 14])
def test_going_on_from_any_step_is_as_if_nothing_happened(stop: int) -> None:
    program = tiny_program()
    settings = stage(checkpoint_seconds=0.0, small=16, small_epochs=2)
    whole = Run(program, settings)
    assert sorted(whole.saved) == list(range(1, 16))
    rest = Run(tiny_program(seed=9), settings, resume=whole.saved[stop])
    assert rest.figures == whole.figures[stop:]
    assert all(torch.equal(rest.model.arrays[n], value) for n, value in whole.model.arrays.items())


def test_the_first_epochs_see_small_images_and_the_teacher_none(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_program()
    seen: dict[int, list[int]] = {}

    def forward(model: Vit, images: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.setdefault(id(model), []).append(images.shape[2])
        return Vit.__wrapped__(model, images, *args, **options)  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(Vit, "__wrapped__", Vit.forward, raising=False)
    monkeypatch.setattr(Vit, "forward", forward)
    run = Run(program, stage(small=16, small_epochs=1, teacher=0.5), teacher=program)
    student = seen.pop(id(run.model))
    assert student == [16] * 5 + [32] * 10 and list(seen.values()) == [[32] * 15]


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (224, 224)])
def test_small_images_keep_their_shape_and_their_mean(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    small = shrink_images(images, 16)
    assert small.shape[2:] == (16, 16 * size[1] // size[0])
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), atol=0.02, rtol=0)


def test_every_epoch_ends_with_a_checkpoint() -> None:
    assert sorted(Run(tiny_program(), stage()).saved) == [5, 10, 15]


def test_the_result_is_the_average_of_the_weights() -> None:
    settings = stage(checkpoint_seconds=0.0)
    run = Run(tiny_program(), settings)
    name = "b00_ffn/fc1/weight"
    average = tiny_program().weights["b00_ffn.fc1.weight"].astype(np.float64)
    for step in range(1, 16):
        decay = min(0.9, (1 + step) / (10 + step))
        live = run.saved[step]["model"][f"arrays.{name}"].numpy()
        average = decay * average + (1 - decay) * live
    np.testing.assert_allclose(run.model.arrays[name].detach().numpy(), average, atol=1e-5)
    last = Run(tiny_program(), replace(settings, ema=0.0))
    assert torch.equal(last.model.arrays[name], last.saved[15]["model"][f"arrays.{name}"])
    assert not torch.allclose(last.model.arrays[name], run.model.arrays[name], atol=1e-4)


@pytest.mark.parametrize(("broken", "kept"), [(7, "the checkpoint of step 5 is good"), (2, "nothing was saved yet")])
def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(broken: int, kept: str) -> None:
    program = tiny_program()
    run = Run(program, stage(), source=Memory(program, broken=broken))
    assert run.error is not None
    assert f"the loss is nan and its gradient nan long at step {broken + 1}, in stage 'recover'; {kept}" in str(
        run.error
    )
    assert len(run.figures) == broken
    assert all(bool(value.isfinite().all()) for value in run.model.arrays.values())


class Cliff(Plain):
    """At step 6 the head's input gets a 0 added whose derivative is not a number."""

    def __init__(self) -> None:
        self.step = 0
        self.tap = self._tap

    def begin(self, step: int, micro: int, done: float, size: int) -> None:
        self.step = step

    def _tap(self, name: str, value: Tensor) -> Tensor:
        return value + torch.sqrt((value * 0).square().sum()) if self.step == 6 and name == "head" else value


def test_a_derivative_that_is_no_number_stops_too() -> None:
    """The loss is still finite then; a checkpoint of the next step would hold weights that are none."""
    run = Run(tiny_program(), stage(checkpoint_seconds=0.0), hooks=Cliff())
    assert run.error is not None
    assert "step 7" in str(run.error)
    assert np.isfinite(run.column("loss")).all()
    assert all(bool(v.isfinite().all()) for state in run.saved.values() for v in state["model"].values())


def test_a_teacher_alone_needs_no_labels() -> None:
    program, teacher = tiny_program(), tiny_program(seed=4)
    source = Memory(program)
    source.labels = torch.full((IMAGES,), -1)
    run = Run(program, stage(epochs=10, teacher=1.0, rate=4e-3), source=source, teacher=teacher)
    losses = run.column("loss")
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()


@pytest.mark.parametrize("small", [0, 16])
def test_streams_are_followed_besides_logits(small: int) -> None:
    program, teacher = tiny_program(depth=3), tiny_program(depth=3, seed=4)
    settings = stage(epochs=10, teacher=1.0, rate=4e-3, small=small, small_epochs=5 if small else 0)
    errors = []
    for weight in (0.0, 0.8):
        run = Run(program, replace(settings, tokens=weight), teacher=teacher)
        images = Memory(program).images
        taught = Teacher(Vit(teacher), tokens=True)(images).tokens
        assert taught is not None
        streams = Streams(program.spec)
        with torch.no_grad():
            run.model(images, watch=streams.watch)
            errors.append(float(streams.loss(taught)))
    assert errors[1] < 0.7 * errors[0]


def test_the_rate_rises_and_falls() -> None:
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == max(factors) == pytest.approx(1.0)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert FINAL_RATE <= factors[-1] < 1.1 * FINAL_RATE


def test_decay_is_for_matrices_and_gates_have_their_own_rates() -> None:
    model = Vit(attach_gates(tiny_program()))
    model.array("b00_ffn.fc2.weight").requires_grad_(False)
    found: dict[str, tuple[float, float]] = {}
    names = {id(parameter): name.replace("/", ".") for name, parameter in model.arrays.items()}
    for group in make_optimiser(model, stage()).param_groups:
        found |= {names[id(p)]: (group["lr"], group["weight_decay"]) for p in group["params"]}
    assert set(names.values()) - set(found) == {"b00_ffn.fc2.weight"}
    assert found["b00_mhsa.qkv.weight"] == found["stem.weight"] == found["head.weight"] == (2e-3, 0.05)
    assert found["b00_mhsa.norm.weight"] == found["head.bias"] == found["stem.pos"] == (2e-3, 0.0)
    assert found["b00_mhsa.gate.weight"] == (3e-3, 0.0)
    assert found["b00_mhsa.gate.bias"] == (2e-2, 0.0)
    assert found["b00_mhsa.skip"] == (4e-3, 0.0)
