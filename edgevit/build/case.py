"""A build that is verified: where it runs, what it is held against, and how large its logits are."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np

from edgevit.backends import Backend, Build, Runner, backend
from edgevit.images.image_set import ImageSet
from edgevit.measure.environment import cpu_flags
from edgevit.program.program import Program
from edgevit.schema.claims import FIGURES, Claim, Figures
from edgevit.schema.target import Target, missing_flags
from edgevit.util.machines import INSTALL_EMULATOR, emulator_path
from edgevit.verify.parity import ALL_OPEN, ALL_SKIPPED

# Of `head_deviation`: images that are all of a kind look at a part of the directions only. Golden outputs allow for
# the rounding of other CPUs, which the directions that were looked at have no part in.
LEAST_PART, GOLDEN_PART = 0.125, 0.5


@dataclass(frozen=True, kw_only=True)
class Place:
    """A target, and what of it this machine can run."""

    target: Target

    @property
    def elsewhere(self) -> bool:
        """Whether the build is machine code that this CPU does not run; in an emulator: few images, and no times."""
        machine_code = backend(self.target.backend).NATIVE
        return machine_code and (self._foreign or bool(missing_flags(self.target, cpu_flags())))

    @property
    def _foreign(self) -> bool:
        return self.target.arch != platform.machine()

    @property
    def runnable(self) -> bool:
        return not self.elsewhere or (self._foreign and emulator_path() is not None)

    @property
    def unrunnable(self) -> str:
        """Return why it does not run here, and what to do."""
        device = "`edgevit verify` on the device checks its golden outputs"
        if self._foreign:
            here = f"built on {platform.machine()} without an emulator"
            return f"machine code for {self.target.arch}, {here}; {device}, or build again after: {INSTALL_EMULATOR}"
        lacking = ", ".join(missing_flags(self.target, cpu_flags()))
        return f"machine code for a CPU with {lacking}, which the one it was built on lacks; {device}"


@dataclass(frozen=True, kw_only=True)
class Case(Place, Build):
    """A compiled build and what it is held against; `runtime` is its backend.

    `evaluation` are the images that accuracy is judged on, held out or labelled (None: the calibration images), and
    `max_drop` the points that may be lost against the original there (None: no limit).
    """

    runtime: Backend
    calibration: ImageSet
    evaluation: ImageSet | None
    max_drop: float | None = None

    def load(self) -> Runner:
        """Return the compiled model, loaded as the target's device does."""
        target = self.target
        return self.runtime.load(
            self.folder, threads=target.threads, precision=target.inference_precision, weight_bits=target.weight_bits
        )

    @property
    def efforts(self) -> dict[str, float]:
        """Return paths that are tried one by one."""
        return {
            "real": 0.0,
            **({"all_open": ALL_OPEN, "all_skipped": ALL_SKIPPED} if self.program.spec.steered else {}),
        }


def claim(summary: str, figures: Figures) -> Claim:
    """Return the claim that these figures are of, which holds."""
    name = next(name for name, kind in FIGURES.items() if isinstance(figures, kind))
    return Claim(name=name, held=True, summary=summary, figures=figures)


def head_deviation(program: Program) -> float:
    """Return what the logits deviate by over features of all directions; 0 where no norm says how long these are.

    A normalised value has a deviation of 1, so a logit's is the length of its column of the head, norm included. On
    images it is of the same size (DeiT-Ti: 1.30 and 1.33, ViT-Ti: 2.08 and 2.49), but no image can take it away.
    """
    head, weights = program.spec.head, program.weights
    name = "head.pooled_norm" if head.pooled_norm else "head.norm"
    if f"{name}.weight" not in weights:
        return 0.0
    scales = weights[f"{name}.weight"].astype(np.float64)
    if not head.linear:
        return float(np.sqrt((scales**2).mean()))
    columns = weights["head.weight"].astype(np.float64)
    scales = np.resize(scales, len(columns))  # the prefix tokens' rows, one after the other
    return float(np.sqrt(((scales[:, None] * columns) ** 2).sum(axis=0).mean()))
