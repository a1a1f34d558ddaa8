"""Decide which Linears run in int8 and how: the QuantPlan that lowering obeys.

Everything is found by measuring, nothing by name. Per Linear: columns whose removal lets the rest have a much finer
step leave the int8 product (LLM.int8()'s decomposition, Dettmers et al., 2022, with static columns), then the range is
chosen. For the whole model, where logits can be measured: Linears go back to float, the locally worst first, as long
as the drift from the float model is above the limit and each one lowers it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgevit.program.program import Program
from edgevit.program.spec import ProgramSpec
from edgevit.quantize.observe import Ranges, TensorRange
from edgevit.quantize.ranges import Activations, Method, kept_range, output_error, output_sizes, quantizer
from edgevit.schema.int16_sums import Products
from edgevit.schema.quant_plan import LinearPlan, QuantPlan, linear_names
from edgevit.tasks.sensitivity import Evaluate, drift, with_linear
from edgevit.util.threads import in_order

# A column leaves the int8 product when it buys 3 dB, half the error: the cost is 0.1 % of the model's time or less.
OUTLIER_GAIN_DB = 3.0
# Below this a Linear's error is no larger than its neighbours' and is left alone.
QUIET_DB = -33.0
# Drift that needs no float Linear. On the reference models 0.01 nats stand for about 95 % agreement.
MAX_KL = 0.01
# A float Linear costs about 1 % of the model's time; it must take away a tenth of the drift.
FLOAT_GAIN = 0.1
FLOAT_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class _Choice:
    plan: LinearPlan
    error: float


def plan_quantization(
    program: Program,
    ranges: Ranges,
    *,
    weight_bits: Literal[7, 8] = 8,
    int16_products: Products = 2,
    activations: Activations = "uint8",
    range_method: Method = "mse",
    percentile: float = 99.999,
    max_outliers: int = 4,
    evaluate: Evaluate | None = None,
    max_kl: float = MAX_KL,
) -> QuantPlan:
    """Return the plan of a Program whose Linears' inputs were observed.

    Args:
        program: the model.
        ranges: what `observe` saw on it.
        weight_bits: of the weights' int8 range.
        int16_products: as many as the kernels add in 16 bits.
        activations: type of a quantized input.
        range_method: how the range of an input is chosen.
        percentile: of absolute values, for `percentile`.
        max_outliers: most columns that may leave one Linear's int8 product; 0 splits nothing.
        evaluate: logits of some calibration images under a plan; without it no Linear goes back to float.
        max_kl: mean KL divergence from the float model, in nats, above which Linears go back to float.
    """

    def choose(name: str) -> _Choice:
        seen = ranges.tensor(name)
        if seen is None:
            # Nothing was seen: the patch stem, or a branch that no image opened.
            entry = _pixels(program.spec) if name == "stem" else LinearPlan(name=name, int8=True)
            return _Choice(plan=entry, error=0.0)
        weight = program.weights[f"{name}.weight"]
        return _choose(seen, weight, range_method, percentile, activations, max_outliers)

    choices = list(in_order(choose, linear_names(program.spec)))
    plan = QuantPlan(
        linears=tuple(c.plan for c in choices),
        activations=activations,
        weight_bits=weight_bits,
        int16_products=int16_products,
    )
    if evaluate is None:
        return plan
    worst_first = sorted(choices, key=lambda c: -c.error)
    return _keep_float(plan, [c.plan.name for c in worst_first[:FLOAT_TRIES]], evaluate, max_kl)


def _pixels(spec: ProgramSpec) -> LinearPlan:
    """Return the patch stem, which takes the image's own bytes, exactly.

    Pixels count from the mean pixel on, so what rounding does to the weights is not multiplied by a mean of 100 and
    more, the same for all patches. With 7-bit weights this halves what the whole model's logits move.
    """
    mean = sum(spec.image.mean) / len(spec.image.mean)
    return LinearPlan(name="stem", int8=True, zero_point=min(max(round(255 * mean), 0), 255))


def _choose(
    seen: TensorRange, weight: np.ndarray, method: Method, percentile: float, activations: Activations, most: int
) -> _Choice:
    """Return one Linear: outlier columns while each halves the error, then the range."""
    sizes = output_sizes(seen, weight)

    def quantized(columns: np.ndarray) -> _Choice:
        out = tuple(sorted(int(c) for c in columns))
        low, high = kept_range(
            seen, method, weight, percentile=percentile, activations=activations, without=out, sizes=sizes
        )
        scale, zero = quantizer(low, high, activations)
        error = output_error(seen, weight, scale, zero, activations, out, sizes)
        entry = LinearPlan(name=seen.name, int8=True, scale=scale, zero_point=zero, outliers=out)
        return _Choice(plan=entry, error=error)

    by_size = np.argsort(-seen.column_abs_max, kind="stable")
    whole = best = quantized(by_size[:0])
    if _db(whole.error) < QUIET_DB:
        return whole
    splits = [whole] + [quantized(by_size[:k]) for k in range(1, min(most, len(by_size) - 1) + 1)]
    for k, split in enumerate(splits):
        taken = len(best.plan.outliers)
        if k > taken and _db(best.error) - _db(split.error) >= OUTLIER_GAIN_DB * (k - taken):
            best = split
    if best is whole:
        return whole
    peak, rest = seen.column_abs_max[by_size[0]], seen.column_abs_max[by_size[len(best.plan.outliers)]]
    reason = (
        f"outlier columns peak at {peak:.4g}, the others at {rest:.4g}; "
        f"without them the output's error falls from {_db(whole.error):.1f} to {_db(best.error):.1f} dB"
    )
    return replace(best, plan=replace(best.plan, reason=reason))


def _db(error: float) -> float:
    return float(10 * np.log10(max(error, 1e-12)))


def _keep_float(plan: QuantPlan, names: list[str], evaluate: Evaluate, max_kl: float) -> QuantPlan:
    """Give Linears back to float, in the order of `names`, while the drift is above `max_kl` and falls by it."""
    reference = evaluate(None)
    kl = drift(reference, evaluate(plan)).kl
    for name in names:
        if kl <= max_kl:
            break
        trial = with_linear(plan, LinearPlan(name=name, int8=False))
        trial_kl = drift(reference, evaluate(trial)).kl
        if trial_kl <= (1 - FLOAT_GAIN) * kl:
            reason = f"in int8 the logits' KL divergence from the float model is {kl:.2g} nats, in float {trial_kl:.2g}"
            plan, kl = with_linear(plan, LinearPlan(name=name, int8=False, reason=reason)), trial_kl
    return plan
