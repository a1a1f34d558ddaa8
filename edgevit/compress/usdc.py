"""USDC: static pruning and dynamic gates trained together (arXiv 2310.11117), in two stages.

joint    weights, gates and unit masks learn under budgets that come down a ramp
recover  the model is really smaller; weights and gates go on learning at the final budget
What is the paper's and what is our reconstruction: docs/usdc.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevit.compress.gate.control import GateControl, GateSettings
from edgevit.compress.gate.subgroups import parse_groups
from edgevit.compress.gate.threshold import fixed_macs
from edgevit.compress.gate.train import attach_gates
from edgevit.compress.prune.control import MaskControl, MaskSettings
from edgevit.compress.prune.plan import PrunePlan, check_reached, least_macs, planned_spec
from edgevit.compress.prune.shrink import leave_biases, shrink
from edgevit.compress.training.distributed import World
from edgevit.compress.training.loop import StageSettings
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.errors import BudgetError, TrainingError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.stream import batches, mean_outputs
from edgevit.torch_form.vit import Decide, Tap, Vit

Fits = Callable[[ProgramSpec], bool]
TIGHTER = 0.98
SETTLED = 0.8  # of the last stage: gates learn no more


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What the result may cost, as fractions of the dense model's MACs.

    Attributes:
        expected: mean MACs over images: what the gates have to reach.
        static: MACs with every gate open: what pruning has to reach.
        fits: says whether a structure is small enough, when a memory budget was given; pruning goes on until it is.
    """

    expected: float
    static: float
    fits: Fits | None = None

    @property
    def prunes(self) -> bool:
        return self.static < 1

    @property
    def gates(self) -> bool:
        return self.expected < self.static


def split_budget(macs: float, static: float | None, share: float) -> Budgets:
    """Budgets from expected MACs, and the static part or the share of the saving that it has to bring."""
    static = macs**share if static is None else static
    return Budgets(expected=min(macs, static), static=static)


def check_budgets(spec: ProgramSpec, budgets: Budgets) -> None:
    """Raise BudgetError if what always runs, and the least of attention and FFN, cost more."""
    floor = (least_macs(spec) + spec.dim * len(spec.branches)) / total_macs(spec)
    for name, value in (("expected", budgets.expected), ("static", budgets.static)):
        if not floor < value <= 1:
            raise BudgetError(
                f"{name} MACs of {value:g} cannot be reached by {spec.name}: stem, head, gates and the least of "
                f"attention and FFN that has to stay are {floor:.1%} of the dense model's; ask for more than "
                f"{floor:.3f} and at most 1"
            )


def prepare(dense: Program, budgets: Budgets, images: np.ndarray, recipe: TrainRecipe) -> Program:
    """The Program that stage 1 begins with: with budgets for gates, open ones and the mean outputs as skip rows."""
    if not budgets.gates:
        return dense
    gated = attach_gates(dense)
    means = mean_outputs(Vit(dense).eval().requires_grad_(False), batches(dense.spec, images))
    new = {f"{b.name}.skip": means[b.name].numpy() for b in gated.spec.branches if b.name in means}
    for branch in gated.spec.branches:
        if branch.gate is not None:
            new[f"{branch.name}.gate.bias"] = np.full(1, recipe.gate_bias, np.float32)
    return gated.with_weights(new)


class Together:
    """The hooks of one stage: gates, masks or both, and the ramp of their budgets."""

    def __init__(
        self, model: Vit, dense: ProgramSpec, budgets: Budgets, recipe: TrainRecipe, world: World, *, joint: bool
    ) -> None:
        self.spec, self.budgets, self.recipe, self.joint = model.spec, budgets, recipe, joint
        self.dense_macs = total_macs(dense)
        settings = GateSettings(
            groups=parse_groups(recipe.groups),
            seed=recipe.seed,
            noise=recipe.gate_noise,
            # Gates go on learning in the next stage; only at the end do weights get used to what a device decides.
            noise_until=1.0 if joint else SETTLED,
            stiffness=recipe.stiffness,
            price_rate=recipe.price_rate,
            price_limit=recipe.price_limit,
        )
        self.gates = GateControl(model, settings, gather=world.gather, rank=world.rank) if model.spec.gated else None
        prunes = joint and budgets.prunes
        self.masks = MaskControl(model, MaskSettings(), mean=world.mean) if prunes else None
        self.decide: Decide | None = self.gates.decide if self.gates else None
        self.tap: Tap | None = self.masks.tap if self.masks else None
        self.planned = 0
        self._recost()

    def static_now(self, done: float) -> float:
        """All-open MACs allowed at a point of the stage: a cubic ramp (Zhu and Gupta, arXiv 1710.01878)."""
        left = max(0.0, 1 - done / self.recipe.ramp) if self.recipe.ramp else 0.0
        return self.budgets.static + (1 - self.budgets.static) * left**3

    def expected_now(self, done: float) -> float:
        """Expected MACs allowed at a point of the stage: a linear ramp of the gates' part."""
        if not self.joint:
            return self.budgets.expected
        over = min(1.0, done / self.recipe.ramp) if self.recipe.ramp else 1.0
        return self.static_now(done) * (1 + (self.budgets.expected / self.budgets.static - 1) * over)

    def begin(self, step: int, micro: int, done: float, size: int) -> None:
        if self.gates is not None:
            self.gates.begin(step, micro, done, size, self.expected_now(done))
        if self.masks is not None:
            self.masks.begin(step, size)

    def penalty(self) -> Any:
        return None if self.gates is None else self.gates.penalty()

    def observe(self) -> None:
        if self.masks is not None:
            self.masks.observe()

    def update(self, step: int, done: float) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.masks is not None and self.masks.ready:
            turn = int(min(1.0, done / self.recipe.ramp if self.recipe.ramp else 1.0) * self.masks.settings.replans)
            if turn > self.planned:
                self.planned = turn
                self.masks.replan(self._fraction(self.static_now(done)))
                self._recost()
        if self.gates is not None:
            figures |= self.gates.update()
        return figures | {"static_macs": total_macs(self.now) / self.dense_macs}

    def finish(self) -> PrunePlan:
        """The plan at the final budget, tightened until a memory budget is met too; nothing comes back any more.

        Raises:
            TrainingError: importance never said anything.
            BudgetError: the memory budget cannot be met.
        """
        assert self.masks is not None
        if not self.masks.ready:
            raise TrainingError(
                f"importance could be measured on {self.masks.images} images of stage 'joint', but needs "
                f"{self.masks.settings.fewest_images}: there were too few steps, or the loss does not depend on any "
                "unit (a head of zeros, a single class). Train for more epochs_joint or on more images, or fine-tune "
                "the model before it is compressed"
            )
        static = self.budgets.static
        plan = self.masks.replan(self._fraction(static), returns=False)
        while self.budgets.fits is not None and not self.budgets.fits(planned_spec(self.spec, plan)):
            static *= TIGHTER
            plan = self.masks.replan(self._fraction(static), returns=False)
        return plan

    def reached(self, plan: PrunePlan) -> str:
        """Hold the plan against the budget from below too; what to tell the user, if anything.

        Raises:
            BudgetError: far less is left than was asked for, or all attention or all FFNs are gone.
        """
        asked = self.budgets.static * self.dense_macs
        reduced = planned_spec(self.spec, plan)
        if self.budgets.fits is not None:  # memory may ask for less
            asked = min(asked, total_macs(reduced))
        return check_reached(self.spec, reduced, min(asked, total_macs(self.spec)), self.dense_macs)

    def state(self) -> dict[str, Any]:
        return {
            "gates": None if self.gates is None else self.gates.state(),
            "masks": None if self.masks is None else self.masks.state(),
            "planned": self.planned,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if self.gates is not None:
            self.gates.restore(state["gates"])
        if self.masks is not None:
            self.masks.restore(state["masks"])
        self.planned = state["planned"]
        self._recost()

    def units(self) -> dict[str, int]:
        """Units left of every branch."""
        return {b.name: b.units for b in self.now.branches}

    def open_rates(self) -> dict[str, float]:
        """How often each gate opened lately."""
        if self.gates is None:
            return {}
        return {self.spec.branches[i].name: rate for i, rate in self.gates.opened.items() if i not in self.gates.dead}

    def _fraction(self, static: float) -> float:
        """MACs to remove from this model, as a fraction of its own, so that `static` of the dense model's are left."""
        return max(0.0, 1 - static * self.dense_macs / total_macs(self.spec))

    def _recost(self) -> None:
        """Take the masks of the moment into the structure and the costs."""
        self.now = now = self.spec if self.masks is None else planned_spec(self.spec, self.masks.plan())
        if self.gates is None:
            return
        dead = frozenset(i for i, b in enumerate(now.branches) if b.removed)
        costs = [m / self.dense_macs for m in macs_by_branch(now)]
        self.gates.set_costs(fixed_macs(now) / self.dense_macs, costs, dead)


def really_shrink(model: Vit, plan: PrunePlan) -> Program:
    """The trained model with only the planned units."""
    trained = model.to_program()
    return shrink(leave_biases(trained, plan), plan, None)


def stage_settings(recipe: TrainRecipe, *, joint: bool, bfloat16: bool, first_step: int, learns: bool) -> StageSettings:
    """The recipe's numbers for one stage; `learns` says whether there is a teacher."""
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
    """The Program with another evaluation crop; 0 keeps its own."""
    if not crop_pct:
        return program
    return program.with_weights({}, replace(program.spec, image=replace(program.spec.image, crop_pct=crop_pct)))
