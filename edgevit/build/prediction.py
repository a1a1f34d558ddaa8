"""What a build would cost, without calibrating or compiling: `edgevit build --dry-run`.

The structure is predicted, not the choice: pruning is assumed to take the same share of every branch, every branch is
assumed to get a gate, every Linear to be int8. Sizes and the memory bound are then exact for that structure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgevit.backends import Forecast, desk
from edgevit.backends.targets import accept, accept_program
from edgevit.errors import BudgetError
from edgevit.onnx_form.check import check_size
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import BranchSpec, GateSpec, ProgramSpec
from edgevit.program.token_plans import least_share, predicted, starts
from edgevit.program.tokens import read_plan, with_merges
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, attention_names, linear_names
from edgevit.schema.target import Target

NEURON_STEP = 16
BISECTIONS = 24
SLACK = 1e-9  # of a unit: a third of three is one


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Bytes, MACs per image, and how many Linears would be int8.

    `model_bytes` is what `holds` says: how large machine code is only a compiler can tell. `bound_bytes` is the memory
    bound of the predicted structure; None for a runtime without one. `expected_macs` is None for a Program with gates
    of its own, or numbers of tokens that follow the image, which only images tell; `less_when` says what makes it less.
    """

    model: str
    target: str
    float_bytes: int
    model_bytes: int
    holds: str
    dense_macs: int
    all_open_macs: int
    expected_macs: float | None
    bound_bytes: int | None
    int8_linears: int
    linears: int
    less_when: str = ""


def predict(
    program: Program,
    target: Target,
    *,
    prune: float = 0.0,
    gate: float = 1.0,
    merge: float = 1.0,
    tokens: str | None = None,
) -> Prediction:
    """Predict a build of `program`; see `api.build.Job` for what it may be asked for.

    Raises:
        BudgetError: the stem and the head alone cost more than the budget.
        ProgramError: it is too large for any target's file.
        RuntimeMissingError: only the target's runtime could tell, and it is not installed.
        TargetError: the target asks for what its runtime cannot do.
    """
    accept(target)
    spec = gated(_pruned(program.spec, prune)) if gate < 1.0 else _pruned(program.spec, prune)
    if merge < 1.0:
        spec = _merged(spec, merge)
    if tokens is not None:
        spec = with_merges(spec, read_plan(tokens, spec))
    accept_program(target, spec)
    check_size(spec, int8=target.int8)
    names = linear_names(spec)
    found = _forecast(spec, target)
    follows = {"gates close": program.spec.gated and gate == 1.0, "an image merges more tokens": spec.adaptive}
    less_when = " or ".join(what for what, true in follows.items() if true)
    everything = total_macs(spec)
    return Prediction(
        model=program.spec.name,
        target=target.name,
        float_bytes=4 * sum(a.size for a in program.weights.values()),
        model_bytes=found.model_bytes,
        holds=found.holds,
        dense_macs=total_macs(program.spec),
        all_open_macs=everything,
        expected_macs=None if less_when else everything * gate,
        bound_bytes=found.bound_bytes,
        int8_linears=len(names) if target.int8 else 0,
        linears=len(names),
        less_when=less_when,
    )


def bound_bytes(spec: ProgramSpec, target: Target) -> int | None:
    """Return the memory bound of a build of this structure for `target`; None for a runtime without one."""
    return _forecast(spec, target).bound_bytes


def _forecast(spec: ProgramSpec, target: Target) -> Forecast:
    """Return what the runtime predicts of this structure, with zeros for weights."""
    plan = None
    if target.int8:
        plan = QuantPlan(
            linears=tuple(LinearPlan(name=n, int8=True) for n in linear_names(spec)),
            activations=target.activations,
            weight_bits=target.weight_bits,
            int16_products=target.int16_products,
            attentions=attention_names(spec) if target.attention == "int8" else (),
        )
    zeros = {n: np.zeros(s, dtype=np.float32) for n, s in expected_shapes(spec).items()}
    return desk(target.backend).predict(Program(spec=spec, weights=zeros), plan, target)


def _pruned(spec: ProgramSpec, fraction: float) -> ProgramSpec:
    """Return the spec with the same share of every branch taken away, so that `fraction` of the MACs is gone."""
    if fraction == 0.0:
        return spec
    budget = total_macs(spec) * (1 - fraction)
    floor = total_macs(spec) - sum(macs_by_branch(spec))
    if budget < floor:
        raise BudgetError(
            f"{1 - fraction:.2%} of {total_macs(spec) / 1e6:.1f} MMACs are {budget / 1e6:.1f}, but stem and head alone "
            f"need {floor / 1e6:.1f}; pruning can leave {math.ceil(1e4 * floor / total_macs(spec)) / 1e4:.2%} at least"
        )
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        low, high = (share, high) if total_macs(scaled(spec, share)) <= budget else (low, share)
    return scaled(spec, low)


def _merged(spec: ProgramSpec, share: float) -> ProgramSpec:
    """Return the spec with tokens merged at spread points, pruned before where merging alone does not reach `share`."""
    budget = int(share * total_macs(spec))
    reach = max(share, least_share(spec))
    for fraction in (1 - share / reach, 1 - 2 * share / (1 + reach), 1 - share):
        smaller = _pruned(spec, fraction)
        if total_macs(smaller) <= budget:
            return smaller
        if starts(smaller, budget):
            return predicted(smaller, budget)
    return smaller


def scaled(spec: ProgramSpec, share: float) -> ProgramSpec:
    """Return the spec with `share` (0 to 1) of all heads, and of all neurons in steps of 16, spread over branches."""
    passed = {"mhsa": 0, "ffn": 0}  # steps of the branches before

    def keep(branch: BranchSpec) -> BranchSpec:
        step = NEURON_STEP if branch.kind == "ffn" and branch.units >= NEURON_STEP else 1
        begin = passed[branch.kind]
        passed[branch.kind] = end = begin + -(-branch.units // step)
        units = min(step * (int(end * share + SLACK) - int(begin * share + SLACK)), branch.units)
        return replace(branch, kept=branch.kept[:units], gate=branch.gate if units else None)

    return replace(spec, branches=tuple(keep(b) for b in spec.branches))


def gated(spec: ProgramSpec) -> ProgramSpec:
    """Return the spec with a gate and skip rows on every branch that is left."""
    gate = GateSpec(pool="prefix" if spec.stem.prefix else "mean", threshold=0.0)
    return replace(spec, branches=tuple(b if b.removed else replace(b, gate=gate, skip=True) for b in spec.branches))
