"""What the stages of a training do to a Program, each a function; their order is in `edgevit.pipeline.train`.

joint    weights, gates and unit masks learn under budgets that come down a ramp
recover  the model is really smaller; weights and gates go on learning at the final budget
What is the paper's and what is our reconstruction: docs/usdc.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.compress.budgets import Budgets
from edgevit.compress.gate.attach import attach_gates
from edgevit.compress.gate.fold import fold_constant
from edgevit.compress.gate.initial import initial_gates
from edgevit.compress.gate.threshold import calibrate_thresholds, check_spent
from edgevit.compress.prune.plan import PrunePlan
from edgevit.compress.prune.shrink import leave_biases, shrink
from edgevit.compress.training.loop import StageSettings
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.compress.usdc.hooks import StageHooks
from edgevit.program.macs import total_macs
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches, mean_outputs
from edgevit.torch_form.vit import Vit
from edgevit.util.progress import Say

MEAN_IMAGES = 256
SPREAD = 2.0  # how decided measured gates are; only their order counts


def prepare(dense: Program, budgets: Budgets, images: np.ndarray, recipe: TrainRecipe) -> Program:
    """Return what stage 1 begins with: where gates have a budget, with open ones and mean outputs as skip rows."""
    if not budgets.gates or recipe.gates == "measured":
        return dense
    gated = attach_gates(dense)
    means = mean_outputs(Vit(dense).eval().requires_grad_(False), batches(dense.spec, images))
    new = {f"{b.name}.skip": means[b.name].numpy() for b in gated.spec.branches if b.name in means}
    for branch in gated.spec.branches:
        if branch.gate is not None:
            new[f"{branch.name}.gate.bias"] = np.full(1, recipe.gate_bias, np.float32)
    return gated.with_weights(new)


def measure_gates(program: Program, dense_macs: int, budgets: Budgets, images: np.ndarray) -> Program:
    """Return the pruned Program with gates that follow what skipping each branch does to each of uint8 `images`.

    They open where the logits would move far for the MACs saved. With one threshold for all that is how a mean budget
    is spent with the least loss, so gates do not learn any more; weights get used to them.
    """
    if not budgets.gates or program.spec.gated:
        return program
    gated = attach_gates(program)
    own = total_macs(gated.spec)
    return initial_gates(gated, images, min(budgets.expected * dense_macs / own, 1.0), SPREAD)


def apply_prune_plan(model: Vit, plan: PrunePlan) -> Program:
    """Return the trained model with only the planned units."""
    trained = model.to_program()
    return shrink(leave_biases(trained, plan), plan, None)


def prune_trained(model: Vit, hooks: StageHooks, say: Say) -> Program:
    """Return the trained model with only the units that its masks left, checked against the budget from both sides."""
    if hooks.masks is None:
        return model.to_program(hooks.settled(model.spec))
    plan = hooks.finish()
    note = hooks.reached(plan)
    if note:
        say(f"warning: {note}")
    program = apply_prune_plan(model, plan)
    return replace(program, spec=hooks.settled(program.spec))


def set_thresholds(program: Program, dense_macs: int, budgets: Budgets, images: np.ndarray, say: Say) -> Program:
    """Return the Program with thresholds that meet the expected budget on uint8 `images`.

    Raises:
        BudgetError: the gates cannot come near it.
    """
    if not (program.spec.gated or program.spec.adaptive):
        return program
    own = total_macs(program.spec)
    left = min(budgets.expected * dense_macs / own, 1.0)
    program = calibrate_thresholds(program, images, left)
    note = check_spent(program, images, left * own, dense_macs)
    if note:
        say(f"warning: {note}")
    return program


def fold_gates(program: Program, budgets: Budgets, images: np.ndarray) -> Program:
    """Return the Program without gates that decide alike for all of `images`, unless that breaks a memory budget."""
    folded = fold_constant(program, images)
    return folded if budgets.fits is None or budgets.fits(folded.spec) else program


def stage_settings(recipe: TrainRecipe, *, joint: bool, bfloat16: bool, first_step: int, learns: bool) -> StageSettings:
    """Return the recipe's numbers for one stage; `learns` says whether there is a teacher."""
    r = recipe
    return StageSettings(
        name="joint" if joint else "recover",
        epochs=r.epochs_joint if joint else r.epochs_recover,
        small=r.small,
        small_epochs=0 if not r.small else r.epochs_joint if joint else max(r.epochs_recover - r.full_epochs, 0),
        rate=r.rate_joint if joint else r.rate_recover,
        batch=r.batch,
        accumulate=r.accumulate,
        warmup=r.warmup,
        weight_decay=r.weight_decay,
        clip=r.clip,
        # Masks and plans belong to the weights of the moment, not to an average over other structures.
        ema=0.0 if joint else r.ema,
        label_smoothing=r.label_smoothing,
        teacher=r.teacher if learns else 0.0,
        temperature=r.temperature,
        tokens=r.tokens if learns else 0.0,
        gate_weight_rate=r.gate_weight_rate,
        gate_bias_rate=r.gate_bias_rate,
        skip_rate=r.skip_rate,
        bfloat16=bfloat16,
        checkpoint_seconds=r.checkpoint_seconds,
        first_step=first_step,
    )


def with_crop(program: Program, crop_pct: float) -> Program:
    """Return the Program with another evaluation crop; 0 keeps its own."""
    if not crop_pct:
        return program
    return program.with_weights({}, replace(program.spec, image=replace(program.spec.image, crop_pct=crop_pct)))
