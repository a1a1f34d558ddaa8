"""The training loop: one stage of optimiser steps that can stop anywhere and go on exactly where it was."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.training.distributed import World
from edgevit.compress.training.ema import Ema
from edgevit.compress.training.loss import task_loss
from edgevit.compress.training.teacher import Teacher
from edgevit.compress.training.tokens import Streams
from edgevit.errors import TrainingError
from edgevit.torch_form.layers import Tap
from edgevit.torch_form.vit import Count, Decide, Vit

FINAL_RATE = 0.01  # of the peak, at the end of the cosine
SMOOTHED = 0.9


class Source(Protocol):
    """Where batches come from; see `edgevit.compress.training.batches.Batches`."""

    @property
    def steps(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


class Hooks(Protocol):
    """What takes part in training besides the weights: gates, masks, merges, or nothing (`Plain`).

    `decide`, `tap`, `count` and `effort` are what `Vit` takes.
    """

    decide: Decide | None
    tap: Tap | None
    count: Count | None

    @property
    def effort(self) -> float: ...

    def begin(self, step: int, micro: int, done: float, size: int) -> None:
        """Prepare a micro-batch's forward; `done` is the part of the stage that is over, `size` its global samples."""

    def penalty(self) -> Tensor | None:
        """Return what is added to the micro-batch's loss."""

    def observe(self) -> None:
        """Take in the gradients after a micro-batch's backward."""

    def update(self, step: int, done: float) -> dict[str, float]:
        """Return follow the optimiser's step; return figures for the log."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Plain:
    """No gates, no masks."""

    decide: Decide | None = None
    tap: Tap | None = None
    count: Count | None = None
    effort: float = 0.0

    def begin(self, step: int, micro: int, done: float, size: int) -> None:
        """Nothing to prepare."""

    def penalty(self) -> Tensor | None:
        """Return nothing to add."""
        return None

    def observe(self) -> None:
        """Nothing to learn."""

    def update(self, step: int, done: float) -> dict[str, float]:
        """Return nothing to tell."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """The numbers of one stage; see `TrainRecipe`.

    `first_step` is the number of its first step in the log; its first `small_epochs` see images of side `small`;
    `betas` are AdamW's.
    """

    name: str
    epochs: int
    rate: float
    batch: int
    accumulate: int
    warmup: float
    weight_decay: float
    clip: float
    ema: float
    label_smoothing: float
    teacher: float
    temperature: float
    tokens: float
    gate_weight_rate: float
    gate_bias_rate: float
    skip_rate: float
    bfloat16: bool
    checkpoint_seconds: float
    small: int = 0
    small_epochs: int = 0
    first_step: int = 0
    betas: tuple[float, float] = (0.9, 0.999)


Report = Callable[[int, int, float, Mapping[str, float]], None]  # step, steps, images per second, figures
Save = Callable[[int, dict[str, Any]], None]  # step, state of the stage


def stage_steps(source: Source, settings: StageSettings) -> int:
    """Return the number of optimiser steps of a stage."""
    return settings.epochs * (source.steps // settings.accumulate)


def fit(
    model: Vit,
    source: Source,
    settings: StageSettings,
    hooks: Hooks,
    *,
    teacher: Teacher | None,
    world: World,
    report: Report,
    save: Save,
    resume: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> None:
    """Train `model` in place for one stage and leave the averaged weights in it.

    Args:
        model: with gates where `hooks` decides them.
        source: micro-batches of this process, `batch / accumulate` samples over all processes.
        settings: the stage's numbers.
        hooks: gates and masks.
        teacher: whose outputs to follow; None trains on labels alone.
        world: the processes.
        report: called after every step.
        save: called with the state now and then, and at the end of every epoch.
        resume: a state that `save` got; training goes on as if it had not stopped.
        device: where to compute.

    Raises:
        TrainingError: the loss is not finite; the last saved state is the one to go back to.
    """
    model.to(device).train()
    wrapped, optimiser, ema = world.wrap(model), make_optimiser(model, settings), Ema(model, settings.ema)
    rates = [group["lr"] for group in optimiser.param_groups]
    total, per_epoch = stage_steps(source, settings), max(source.steps // settings.accumulate, 1)
    first = 0 if resume is None else _restore(resume, model, optimiser, ema, hooks)
    micro = _micro_batches(source, settings.accumulate, first)
    streams = Streams(model.spec) if teacher is not None and teacher.streams is not None else None
    saved, saved_step, speed = time.monotonic(), first, 0.0
    for step in range(first, total):
        began, losses = time.monotonic(), 0.0
        done = step / max(total, 1)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(step, total, settings.warmup)
        for part in range(settings.accumulate):
            images, labels = next(micro)
            hooks.begin(settings.first_step + step, part, done, len(images) * world.size)
            side = settings.small if step < settings.small_epochs * per_epoch else 0
            loss = _loss(wrapped, images.to(device), labels.to(device), settings, hooks, teacher, streams, side)
            torch.autograd.backward(loss / settings.accumulate)
            hooks.observe()
            losses += float(loss.detach()) / settings.accumulate
        mean = float(world.mean(np.array(losses)))
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
        if not math.isfinite(mean + norm):
            # Before the weights take it in: what was saved so far is good.
            raise _diverged(settings, step + 1, saved_step, mean, norm)
        optimiser.step()
        optimiser.zero_grad()
        ema.update(model)
        figures = hooks.update(settings.first_step + step, (step + 1) / max(total, 1))
        now = settings.batch / (time.monotonic() - began)
        speed = now if step == first else SMOOTHED * speed + (1 - SMOOTHED) * now
        rate = optimiser.param_groups[0]["lr"]
        report(step + 1, total, speed, {"loss": mean, "rate": rate, "gradient": norm, **figures})
        if (step + 1) % per_epoch == 0 or time.monotonic() - saved > settings.checkpoint_seconds:
            save(step + 1, _state(step + 1, model, optimiser, ema, hooks))
            saved, saved_step = time.monotonic(), step + 1
    if settings.ema:
        ema.copy_to(model)
    model.to("cpu").eval()


def rate_factor(step: int, total: int, warmup: float) -> float:
    """Return the part of the peak learning rate: linear warm-up, then a cosine to 1 % of it."""
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(total - rising, 1)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimiser(model: Vit, settings: StageSettings) -> torch.optim.AdamW:
    """Return AdamW over groups: matrices (with decay), vectors and positions (without), and the parts of gates."""
    groups: dict[str, list[Tensor]] = {"matrix": [], "vector": [], "gate.weight": [], "gate.bias": [], "skip": []}
    for name, parameter in model.arrays.items():
        plain = name.replace("/", ".")
        if not parameter.requires_grad:
            continue
        part = next((p for p in ("gate.weight", "gate.bias", "skip") if plain.endswith("." + p)), None)
        matrix = plain.endswith(".weight") and parameter.ndim == 2
        groups[part or ("matrix" if matrix else "vector")].append(parameter)
    rates = {
        "gate.weight": settings.gate_weight_rate,
        "gate.bias": settings.gate_bias_rate,
        "skip": settings.skip_rate,
    }
    return torch.optim.AdamW(
        [
            {
                "params": members,
                "lr": rates.get(part, settings.rate),
                "weight_decay": settings.weight_decay if part == "matrix" else 0.0,
            }
            for part, members in groups.items()
            if members
        ],
        betas=settings.betas,
    )


def _diverged(settings: StageSettings, step: int, saved: int, loss: float, norm: float) -> TrainingError:
    """Return the error that names the step, as the log counts, and what was saved before it."""
    first = settings.first_step
    kept = f"the checkpoint of step {first + saved} is good and kept" if first + saved else "nothing was saved yet"
    return TrainingError(
        f"the loss is {loss:g} and its gradient {norm:g} long at step {first + step}, in stage {settings.name!r}; "
        f"{kept}. Train anew with a lower learning rate, or with precision = 'float32'"
    )


def _loss(
    wrapped: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: StageSettings,
    hooks: Hooks,
    teacher: Teacher | None,
    streams: Streams | None,
    side: int,
) -> Tensor:
    """Return forward one micro-batch, smaller if there is a `side`: the task's loss and what streams and hooks add."""
    autocast = torch.autocast(images.device.type, torch.bfloat16) if settings.bfloat16 else contextlib.nullcontext()
    with autocast:
        wanted, tokens = (None, None) if teacher is None else teacher(images)
        seen = shrink_images(images, side) if side else images
        watch = None if streams is None else streams.watch
        logits = wrapped(seen, hooks.decide, hooks.tap, watch, hooks.count, trim=True, effort=hooks.effort)
    loss = task_loss(
        logits,
        labels,
        wanted,
        weight=settings.teacher,
        temperature=settings.temperature,
        smoothing=settings.label_smoothing,
    )
    if streams is not None and tokens is not None:
        loss = (1 - settings.tokens) * loss + settings.tokens * streams.loss(tokens)
    penalty = hooks.penalty()
    return loss if penalty is None else loss + penalty.to(loss.device)


def shrink_images(images: Tensor, side: int) -> Tensor:
    """Return resample `[B, 3, height, width]` to a shorter side of `side` pixels."""
    height, width = (round(length * side / min(images.shape[2:])) for length in images.shape[2:])
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True)


def _micro_batches(source: Source, accumulate: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield micro-batches from optimiser step `first` on, over the ends of epochs; a remainder is left out."""
    per_epoch = max(source.steps // accumulate, 1)
    epoch, within = divmod(first, per_epoch)
    while True:
        for at, batch in enumerate(source.epoch(epoch, within * accumulate), start=within * accumulate):
            if at >= per_epoch * accumulate:
                break
            yield batch
        epoch, within = epoch + 1, 0


def _state(step: int, model: Vit, optimiser: torch.optim.Optimizer, ema: Ema, hooks: Hooks) -> dict[str, Any]:
    return {
        "step": step,
        "model": dict(model.state_dict()),
        "optimiser": optimiser.state_dict(),
        "ema": ema.state(),
        "hooks": hooks.state(),
    }


def _restore(state: Mapping[str, Any], model: Vit, optimiser: torch.optim.Optimizer, ema: Ema, hooks: Hooks) -> int:
    """Put a saved state back; return the step to go on with.

    Raises:
        TrainingError: it lacks something, or something in it is not what this run saves.
    """
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema.restore(state["ema"])
        hooks.restore(state["hooks"])
        step = state["step"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"the checkpoint does not fit this run ({type(error).__name__}: {reason}); take another, or train anew "
            "without --resume"
        ) from error
    if not isinstance(step, int) or step < 0:
        raise TrainingError(f"the checkpoint is of step {step!r}, expected a whole number; train anew without --resume")
    return step
