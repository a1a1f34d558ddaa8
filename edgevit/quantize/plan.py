"""Decide which Linears run in int8 and how: the QuantPlan that lowering obeys."""

from __future__ import annotations

from typing import Literal

from edgevit.models.program import Program
from edgevit.quantize.observe import Ranges
from edgevit.quantize.ranges import Activations, Method, kept_range, quantizer
from edgevit.quantspec import LinearPlan, QuantPlan, linear_names


def plan_quantization(
    program: Program,
    ranges: Ranges,
    *,
    weight_bits: Literal[7, 8] = 8,
    activations: Activations = "uint8",
    range_method: Method = "minmax",
    percentile: float = 99.999,
) -> QuantPlan:
    """The plan of a Program whose Linears' inputs were observed."""
    plans = []
    for name in linear_names(program.spec):
        seen = ranges.tensor(name)
        if seen is None:
            # The patch stem takes the image's own bytes: scale 1 and zero point 0 are exact.
            plans.append(LinearPlan(name=name, int8=True))
            continue
        low, high = kept_range(seen, range_method, percentile=percentile, activations=activations)
        scale, zero_point = quantizer(low, high, activations)
        plans.append(LinearPlan(name=name, int8=True, scale=scale, zero_point=zero_point))
    return QuantPlan(linears=tuple(plans), activations=activations, weight_bits=weight_bits)
