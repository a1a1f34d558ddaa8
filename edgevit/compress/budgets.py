"""What a compressed model may cost, always as the part of the given model's MACs that is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from edgevit.compress.prune.plan import least_macs
from edgevit.errors import BudgetError
from edgevit.program.macs import total_macs
from edgevit.program.spec import ProgramSpec
from edgevit.program.token_plans import least_share
from edgevit.program.tokens import write_plan

Fits = Callable[[ProgramSpec], bool]


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What the result may cost, as fractions of the given model's MACs that are left; 1 removes nothing.

    Attributes:
        expected: mean MACs over images: what the gates have to reach; at most `static`.
        static: MACs with every gate open: what pruning has to reach.
        merged: MACs with every gate open that merging tokens has to reach, after pruning what it cannot; 1: none merge.
            In training it is what the plan of merges leaves of the unpruned model, so that pruning begins there.
        per_image: whether the numbers of tokens that merge follow the image (None: where that loses no more).
        fits: says whether a structure is small enough, when a memory budget was given; pruning goes on until it is.
    """

    expected: float = 1.0
    static: float = 1.0
    merged: float = 1.0
    per_image: bool | None = None
    fits: Fits | None = None

    @property
    def prunes(self) -> bool:
        return self.static < self.merged

    @property
    def gates(self) -> bool:
        return self.expected < self.static

    @property
    def learned(self) -> bool:
        """Return whether training has to learn what stays: a plan of merges is there from the first step."""
        return self.prunes or self.gates

    @property
    def compresses(self) -> bool:
        return self.learned or self.merges

    @property
    def merges(self) -> bool:
        return self.merged < 1


def split_budget(macs: float, static: float | None, share: float, merged: float = 1.0) -> Budgets:
    """Return budgets from expected MACs, and the static part or the share of the saving that it has to bring.

    What merging tokens leaves, `merged` of the MACs, comes first: pruning and gates share the rest of the saving.
    """
    rest = min(macs / merged, 1.0)
    static = merged * rest**share if static is None else min(static, merged)
    return Budgets(expected=min(merged * rest, static), static=static, merged=merged)


def check_label_free(spec: ProgramSpec, budgets: Budgets) -> None:
    """Raise BudgetError where what compresses without labels cannot begin, or not come down so far; takes no images."""
    if not budgets.compresses:
        return
    if spec.merges:
        raise BudgetError(
            f"{spec.name} merges tokens already ({write_plan(spec)}), and what was compressed is not compressed again; "
            "give the model that it was made of, or with --tokens another plan"
        )
    check_budgets(spec, budgets)
    if budgets.merges:
        reach, floor = max(budgets.merged, least_share(spec)), least_macs(spec) / total_macs(spec)
        if budgets.merged < reach * floor:
            raise BudgetError(
                f"{budgets.merged:.2%} of the MACs cannot be reached by {spec.name}: merging tokens leaves "
                f"{reach:.0%} at least, and pruning before it {floor:.1%} of the rest; ask for "
                f"{ceil(1e4 * reach * floor) / 1e4:.2%} or more"
            )


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
