"""What takes part in a stage of training besides the weights: gates, unit masks or both, under budgets on a ramp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgevit.compress.budgets import Budgets
from edgevit.compress.gate.control import GateControl, GateSettings
from edgevit.compress.gate.subgroups import parse_groups
from edgevit.compress.gate.threshold import fixed_macs, moved
from edgevit.compress.prune.control import MaskControl, MaskSettings
from edgevit.compress.prune.plan import PrunePlan, check_reached, planned_spec
from edgevit.compress.tokens.control import TokenControl
from edgevit.compress.training.distributed import World
from edgevit.compress.training.recipe import TrainRecipe
from edgevit.errors import TrainingError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.spec import ProgramSpec
from edgevit.torch_form.layers import Tap
from edgevit.torch_form.vit import Count, Decide, Vit

TIGHTER = 0.98
SETTLED = 0.8  # of the last stage: gates learn no more


def gate_settings(recipe: TrainRecipe, *, joint: bool) -> GateSettings:
    """Return the recipe's numbers of gates for one stage."""
    return GateSettings(
        groups=parse_groups(recipe.groups),
        seed=recipe.seed,
        noise=recipe.gate_noise,
        # Gates go on learning in the next stage; only at the end do weights get used to what a device decides.
        noise_until=1.0 if joint else 0.0 if recipe.gates == "measured" else SETTLED,
        stiffness=recipe.stiffness,
        price_rate=recipe.price_rate,
        price_limit=recipe.price_limit,
    )


class StageHooks:
    """The hooks of one stage: gates (by the recipe, or by `gates`), masks, merges, and the ramp of their budgets."""

    def __init__(
        self,
        model: Vit,
        dense: ProgramSpec,
        budgets: Budgets,
        recipe: TrainRecipe,
        world: World,
        *,
        joint: bool,
        gates: GateSettings | None = None,
    ) -> None:
        self.spec, self.budgets, self.recipe, self.joint = model.spec, budgets, recipe, joint
        self.dense_macs = total_macs(dense)
        settings = gates or gate_settings(recipe, joint=joint)
        self.gates = GateControl(model, settings, gather=world.gather, rank=world.rank) if model.spec.gated else None
        prunes = joint and budgets.prunes
        self.masks = MaskControl(model, MaskSettings(), mean=world.mean) if prunes else None
        self.decide: Decide | None = self.gates.decide if self.gates else None
        self.tap: Tap | None = self.masks.tap if self.masks else None
        held = budgets.merged if budgets.merges else None
        self.tokens = TokenControl(model.spec, held, mean=world.mean) if model.spec.adaptive else None
        self.count: Count | None = self.tokens.count if self.tokens else None
        self.planned = 0
        self._recost()

    @property
    def effort(self) -> float:
        return 0.0 if self.tokens is None else self.tokens.effort

    def static_now(self, done: float) -> float:
        """Return the all-open MACs allowed at a point of the stage: a cubic ramp (Zhu and Gupta, arXiv 1710.01878).

        It begins at what merging tokens leaves, which is there from the first step.
        """
        left = max(0.0, 1 - done / self.recipe.ramp) if self.recipe.ramp else 0.0
        return self.budgets.static + (self.budgets.merged - self.budgets.static) * left**3

    def expected_now(self, done: float) -> float:
        """Return the expected MACs allowed at a point of the stage: a linear ramp of the gates' part."""
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
                self.masks.replan(self._left(self.static_now(done)))
                self._recost()
        if self.gates is not None:
            figures |= self.gates.update()
        if self.tokens is not None:
            self.tokens.update()
            self._recost()
        return figures | {"static_macs": total_macs(self.now, left=self.left) / self.dense_macs}

    def finish(self) -> PrunePlan:
        """Return the plan at the final budget, tightened until a memory budget is met too; nothing comes back any more.

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
        plan = self.masks.replan(self._left(static), returns=False)
        while self.budgets.fits is not None and not self.budgets.fits(planned_spec(self.spec, plan)):
            static *= TIGHTER
            plan = self.masks.replan(self._left(static), returns=False)
        return plan

    def reached(self, plan: PrunePlan) -> str:
        """Check the plan against the budget from below too; return what to tell the user, if anything.

        Raises:
            BudgetError: far less is left than was asked for, or all attention or all FFNs are gone.
        """
        asked = self._left(self.budgets.static) * total_macs(self.spec)
        reduced = planned_spec(self.spec, plan)
        if self.budgets.fits is not None:  # memory may ask for less
            asked = min(asked, total_macs(reduced))
        return check_reached(self.spec, reduced, min(asked, total_macs(self.spec)), self.dense_macs)

    def state(self) -> dict[str, Any]:
        return {
            "gates": None if self.gates is None else self.gates.state(),
            "masks": None if self.masks is None else self.masks.state(),
            "planned": self.planned,
            "tokens": None if self.tokens is None else self.tokens.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if self.gates is not None:
            self.gates.restore(state["gates"])
        if self.masks is not None:
            self.masks.restore(state["masks"])
        if self.tokens is not None:
            self.tokens.restore(state["tokens"])
        self.planned = state["planned"]
        self._recost()

    def units(self) -> dict[str, int]:
        """Return the units left of every branch."""
        return {b.name: b.units for b in self.now.branches}

    def open_rates(self) -> dict[str, float]:
        """Return how often each gate opened lately."""
        if self.gates is None:
            return {}
        return {self.spec.branches[i].name: rate for i, rate in self.gates.opened.items() if i not in self.gates.dead}

    @property
    def left(self) -> np.ndarray | None:
        """Return mean patch tokens after every point where their number follows the image."""
        return None if self.tokens is None or self.tokens.left is None else self.tokens.left.round()

    def settled(self, spec: ProgramSpec) -> ProgramSpec:
        """Return the spec with thresholds that decide as the controllers left it at the end of the stage."""
        shifted = spec if self.gates is None else moved(replace(spec, merges=()), self.gates.shift or 0.0)
        return replace(shifted, merges=moved(spec, self.effort).merges)

    def _left(self, static: float) -> float:
        """Return the part of this model's own MACs that is `static` of the dense model's."""
        follows = self.spec.adaptive and self.budgets.merges
        own = self.budgets.merged if follows else total_macs(self.spec) / self.dense_macs
        return min(1.0, static / own)

    def _recost(self) -> None:
        """Take the masks of the moment into the structure and the costs."""
        self.now = now = self.spec if self.masks is None else planned_spec(self.spec, self.masks.plan())
        if self.gates is None:
            return
        dead = frozenset(i for i, b in enumerate(now.branches) if b.removed)
        costs = [m / self.dense_macs for m in macs_by_branch(now, left=self.left)]
        self.gates.set_costs(fixed_macs(now, self.left) / self.dense_macs, costs, dead)
