"""Compress a Program without labels, in minutes; training on a data set is in `train.py`."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit import pipeline
from edgevit.api.images import Images, take_images
from edgevit.compress.budgets import Budgets
from edgevit.errors import BudgetError
from edgevit.images.calibration_checks import check_calibration
from edgevit.program.program import Program
from edgevit.util.progress import say, warn

DIGITS = 12  # of a share: what subtracting leaves behind them is no part of what was asked for


@dataclass(frozen=True, kw_only=True)
class Shares:
    """A budget as the stages take it.

    Attributes:
        prune: fraction of the dense model's MACs that pruning removes.
        gate: expected MACs with gates, as a fraction of the pruned model's (1: no gates).
        merge: fraction of the dense model's MACs that merging tokens has to leave (1: none are merged).
    """

    prune: float
    gate: float
    merge: float = 1.0

    @property
    def budgets(self) -> Budgets:
        static = 1 - self.prune
        return Budgets(static=static, expected=static * self.gate, merged=self.merge)


def shares(macs: float, static: float | None) -> Shares:
    """Return what has to be done so that `macs` of the dense model's MACs are left, expected per image.

    Without `static` merging tokens does it: where nothing is trained on a data set, it loses least accuracy at the same
    MACs (reports/reference/tokens.md, compression.md). With it pruning and gates do.

    Raises:
        BudgetError: a share that is not above 0 and at most 1.
    """
    for name, value in (("macs", macs), ("static", static)):
        if value is not None and not 0 < value <= 1:
            raise BudgetError(
                f"{name} is {value:g}; allowed: above 0 to 1, the share of the dense model's MACs that is left"
            )
    if static is None:
        return Shares(prune=0.0, gate=1.0, merge=macs)
    return Shares(prune=round(1 - static, DIGITS), gate=round(min(macs / static, 1.0), DIGITS))


def compress(
    program: Program, images: Images, *, macs: float = 1.0, static: float | None = None, seed: int = 0
) -> Program:
    """Return a cheaper Program, without labels: its tokens merged, or with `static` pruned and gated. Needs torch.

    Takes minutes. `edgevit build --macs` does this before it builds; what was chosen is said, and kept in
    `spec.original.steps`. Where many tokens merge, output linears are fitted to the dense model's stream again. Below
    half of the MACs a part is pruned first. To compress further without losing as much
    accuracy, `train`.

    Args:
        program: the model, with all its branches and without gates.
        images: 100 to 300 images like those the device will see; see `edgevit`.
        macs: share of the dense model's MACs that is left, expected per image, above 0 to 1: 0.7 is 30 % less.
        static: share that is left with every gate open; pruning pays that, gates the rest (default: tokens are merged).
        seed: of gate training.

    Raises:
        BudgetError: a budget that cannot be met, or is missed by far.
        ImagesError: no usable images.
        RuntimeMissingError: torch is not installed.

    Example:
        >>> smaller = edgevit.compress(program, images, macs=0.8)
        >>> smaller.spec.original.steps[0][:16]
        'tokens merged at'
    """
    asked = shares(macs, static)
    calibration = take_images(images, program.spec.image, splits=("train",))
    for doubt in check_calibration(calibration, program.spec.image):
        warn(doubt)
    return pipeline.compress(program, calibration.images, asked.budgets, seed=seed, say=say)
