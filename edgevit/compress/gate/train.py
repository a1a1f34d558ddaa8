"""Train the gates and skip rows of a model, without labels, on calibration images, and repair what they left.

This is the stage `recover` of training on a data set, with every other weight frozen: the same loop, controller of
gates and distillation. What differs is data: images come from memory, every image decides by itself, the numbers suit
a few dozen steps, and the derivative is the plain straight-through one (as in AdaViT's public code), with which these
numbers were chosen.

So few noisy steps are a draw: what they learn is set against branches that close one after the other (`close`), both
repaired, and what drifts less from the dense model on images kept apart is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np

from edgevit.compress.budgets import Budgets
from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.gate.close import JUDGED_IMAGES, close_branches, gates_of
from edgevit.compress.gate.initial import predicted_gates, start_gates
from edgevit.compress.gate.repair import gated_drift, repair_gates
from edgevit.compress.gate.threshold import FAR, calibrate_thresholds, expected_macs, fixed_macs, open_rates
from edgevit.compress.training.distributed import World
from edgevit.compress.training.in_memory import InMemory
from edgevit.compress.training.loop import fit, stage_steps
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.training.teacher import Teacher
from edgevit.compress.usdc.hooks import StageHooks, gate_settings
from edgevit.compress.usdc.stages import set_thresholds, stage_settings
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import Say, track

SCORED_IMAGES = 96
HELD_OUT = 4  # every 4th image is kept from training and sets the thresholds
SPREAD = 2.0  # how decided the initial gates are
BETAS = (0.9, 0.98)  # a gradient of 100 steps ago says nothing here
# What measured best for a few hundred images (benchmarks/compression_curve.py); the weights' own numbers say nothing.
RECIPE = TrainRecipe(
    epochs_recover=3,
    batch=16,
    warmup=0.0,
    clip=1e9,
    ema=0.0,
    teacher=1.0,
    temperature=1.0,
    groups="sample",
    gate_weight_rate=3e-3,
    gate_bias_rate=1e-1,
    skip_rate=2e-2,
    price_rate=10.0,
    price_limit=50.0,
)


def train_gates(
    program: Program,
    images: np.ndarray,
    budget: float,
    *,
    teacher: Program | None = None,
    seed: int = 0,
    epochs: int = RECIPE.epochs_recover,
    say: Say = lambda _: None,
) -> Program:
    """Return the Program with a gate and skip rows on every branch, repaired under their decisions.

    Output linears then make up for what gates skip, so with all of them open the Program no longer answers as before.

    Args:
        program: ungated; may be pruned.
        images: unlabelled calibration images, uint8 `[n, height, width, 3]`; a quarter only chooses and
            sets the thresholds.
        budget: expected MACs per image as a fraction of `program`'s own.
        teacher: whose outputs to reproduce; `program` with all gates open by default.
        seed: of batch order, flips and noise.
        epochs: passes over the images; 0 keeps the measured initial gates.
        say: told which gates were taken, and where they can only come near the budget.

    Raises:
        BudgetError: the budget is not in (0, 1], below what stem, head and gates cost, or missed; or skipping branches
            changes no output, so that nothing can be learned.
        ImagesError: the images are not what the model takes.
    """
    gated = attach_gates(program)
    _check_budget(gated.spec, budget)
    held = images[HELD_OUT - 1 :: HELD_OUT] if len(images) >= 2 * HELD_OUT else images
    trained = np.delete(images, np.s_[HELD_OUT - 1 :: HELD_OUT], axis=0) if len(images) >= 2 * HELD_OUT else images
    teacher = teacher or program
    started, skips = start_gates(gated, trained[:SCORED_IMAGES])
    learned = predicted_gates(started, skips, budget, SPREAD)
    if epochs:
        learned = _fit(learned, teacher, trained, budget, replace(RECIPE, epochs_recover=epochs, seed=seed))
    closed = gates_of(started, close_branches(started, teacher, trained, held, budget, skips), skips)

    def settle(made: Program) -> Program:
        return calibrate_thresholds(made, held, budget)

    judged = held[JUDGED_IMAGES:] if len(held) >= 2 * JUDGED_IMAGES else held  # branches were not chosen on these
    made = [repair_gates(settle(gates), teacher, trained, settle) for gates in (learned, closed)]
    ranks = [(_misses(gates, held, budget), gated_drift(gates, teacher, judged)) for gates in made]
    best = made[ranks.index(min(ranks))]
    found = ("gates that learned", "branches closed one by one")
    told = ", ".join(f"{name} {drift:.3g}" for name, (_, drift) in zip(found, ranks, strict=True))
    say(f"gates: {found[ranks.index(min(ranks))]} are taken; drift on {len(judged)} images kept apart: {told}")
    return set_thresholds(best, total_macs(gated.spec), Budgets(expected=budget), held, say)


def _misses(program: Program, images: np.ndarray, budget: float) -> bool:
    spent = expected_macs(program.spec, open_rates(program, images)) / total_macs(program.spec)
    return abs(spent - budget) > FAR


def _check_budget(spec: ProgramSpec, budget: float) -> None:
    floor = fixed_macs(spec) / total_macs(spec)
    if not floor < budget <= 1:
        raise BudgetError(
            f"gate budget {budget:g} cannot be met by {spec.name}: stem, head and gates always run and are {floor:.1%} "
            f"of the MACs; choose a budget above {floor:.3f} and at most 1"
        )


def freeze_weights(model: Vit) -> None:
    """Leave nothing to learn but the gates and the skip rows of gated branches."""
    model.requires_grad_(False)
    for branch in model.spec.branches:
        if branch.gate is not None:
            for part in ("gate.weight", "gate.bias", "skip"):
                model.array(f"{branch.name}.{part}").requires_grad_(True)


def _fit(program: Program, teacher: Program, images: np.ndarray, budget: float, recipe: TrainRecipe) -> Program:
    """Return the Program with what the loop made of its gates and skip rows; `budget` is a part of its own MACs."""
    model, spec = Vit(program), program.spec
    freeze_weights(model)
    source = InMemory(spec, images, batch=recipe.batch, seed=recipe.seed)
    settings = stage_settings(recipe, joint=False, bfloat16=False, first_step=0, learns=True)
    settings = replace(settings, betas=BETAS)
    gates = replace(gate_settings(recipe, joint=False), derivative="straight", noise_until=1.0)
    with closing(track(range(stage_steps(source, settings)), "Training gates")) as bar:

        def report(step: int, total: int, speed: float, figures: Mapping[str, float]) -> None:
            next(bar)

        fit(
            model,
            source,
            settings,
            StageHooks(model, spec, Budgets(expected=budget), recipe, World(), joint=False, gates=gates),
            teacher=Teacher(Vit(teacher)),
            world=World(),
            report=report,
            save=lambda step, state: None,
        )
    return model.to_program()
