"""int8 is int8: every Linear that the plan quantizes runs as an int8 kernel in the runtime's own graph.

A quantization recipe that a runtime does not recognise is computed in float, correctly, slowly and without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.errors import CoverageError
from edgevit.schema.quant_plan import QuantPlan


@dataclass(frozen=True, kw_only=True)
class LinearKernels:
    """The kernels of one Linear: `float_kernels` beside int8 ones compute its outlier columns."""

    name: str
    planned_int8: bool
    int8_kernels: int
    float_kernels: int


@dataclass(frozen=True, kw_only=True)
class CoverageResult:
    """Every Linear of the plan with the kernels found; `int8` of `planned` Linears run as the plan says.

    So do `attentions` of the `planned_attentions` branches whose attention was planned int8.
    """

    linears: tuple[LinearKernels, ...]
    int8: int
    planned: int
    attentions: int = 0
    planned_attentions: int = 0

    @property
    def summary(self) -> str:
        text = f"{self.int8} of {self.planned} Gemm int8"
        return text + (
            f", {self.attentions} of {self.planned_attentions} attentions" if self.planned_attentions else ""
        )


def check_coverage(plan: QuantPlan, kernels: Sequence[tuple[str, bool]]) -> CoverageResult:
    """Hold the kernels that a runtime chose against the plan.

    Args:
        plan: what is to be int8.
        kernels: (name, runs as int8) of every kernel with a Linear's weights, branch bodies included. A name begins
            with the Linear's, then `/`.

    Raises:
        CoverageError: names the Linears that were planned int8 and run in float, or were not found.
    """
    found: dict[str, list[tuple[str, bool]]] = {}
    for name, int8 in kernels:
        linear, _, part = name.partition("/")
        found.setdefault(_planned_name(linear), []).append((part, int8))
    linears, faults = [], []
    for entry in plan.linears:
        own = found.get(entry.name, [])
        int8_kernels = sum(int8 for _, int8 in own)
        floats = [part for part, int8 in own if not int8]
        linears.append(
            LinearKernels(
                name=entry.name, planned_int8=entry.int8, int8_kernels=int8_kernels, float_kernels=len(floats)
            )
        )
        if entry.int8 and not own:
            faults.append(f"{entry.name}: no kernel found")
        elif entry.int8 and (not int8_kernels or any(not _is_outlier(part) for part in floats)):
            faults.append(f"{entry.name}: {int8_kernels} int8 and {len(floats)} float kernels")
    planned = sum(entry.int8 for entry in plan.linears)
    missing = [name for name in plan.attentions if not _all_int8(found.get(f"{name}.attention", []))]
    result = CoverageResult(
        linears=tuple(linears),
        int8=planned - len(faults),
        planned=planned,
        attentions=len(plan.attentions) - len(missing),
        planned_attentions=len(plan.attentions),
    )
    faults += [f"{name}.attention: no int8 kernel" for name in missing]
    if faults:
        raise CoverageError(
            f"{result.summary}; planned int8 but not run so by the runtime:\n  " + "\n  ".join(faults) + "\n"
            "allowed: int8 kernels for all of them; leave a Linear float in the plan if it is meant to be"
        )
    return result


def _planned_name(linear: str) -> str:
    """Return the plan entry of a Linear: where few rows are needed, two Gemms (queries; keys, values) share one."""
    for part in (".q", ".kv"):
        if linear.endswith(part):
            return linear.removesuffix(part) + ".qkv"
    return linear


def _all_int8(kernels: Sequence[tuple[str, bool]]) -> bool:
    return bool(kernels) and all(int8 for _, int8 in kernels)


def _is_outlier(part: str) -> bool:
    return part.split("/")[0].endswith("_out")
