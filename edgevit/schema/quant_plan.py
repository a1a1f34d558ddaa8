"""The quantization plan as data: `quantize` decides it, `lower` obeys it, `bundle` records it.

Linears are named as in the Program: `stem`, `b00_mhsa.qkv`, `b00_mhsa.proj`, `b00_ffn.fc1`, `b00_ffn.fc2`, `head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevit.program.spec import ProgramSpec
from edgevit.schema.int16_sums import Products


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """How one Linear runs. int8: input `q = round(x / scale) + zero_point` per tensor, weights int8 per output channel.

    `outliers` are input columns that are taken out of the int8 product and computed in float beside it. `reason` says
    why it is float, or has outliers.
    """

    name: str
    int8: bool
    scale: float = 1.0
    zero_point: int = 0
    outliers: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """One LinearPlan per Linear, in graph order; 7 `weight_bits` keep vpmaddubsw from saturating (no VNNI).

    `int16_products` are as many as a kernel adds in 16 bits; weights are rounded so that their sums fit (`int16_sums`).
    `attentions` are branches whose attention is int8 too, with scales found at run time; only few runtimes do that,
    and the lowered graph computes it in float.
    """

    linears: tuple[LinearPlan, ...]
    activations: Literal["uint8", "int8"] = "uint8"
    weight_bits: Literal[7, 8] = 8
    attentions: tuple[str, ...] = ()
    int16_products: Products = 2

    def linear(self, name: str) -> LinearPlan | None:
        return next((p for p in self.linears if p.name == name), None)


def linear_names(spec: ProgramSpec) -> tuple[str, ...]:
    """Return every Linear that can be int8, in graph order."""
    names = ["stem"]
    for branch in spec.branches:
        if not branch.removed:
            parts = ("qkv", "proj") if branch.kind == "mhsa" else ("fc1", "fc2")
            names += [f"{branch.name}.{part}" for part in parts]
    return (*names, "head") if spec.head.linear else tuple(names)


def attention_names(spec: ProgramSpec) -> tuple[str, ...]:
    """Return every branch whose attention can be int8, in graph order."""
    return tuple(branch.name for branch in spec.branches if branch.kind == "mhsa" and not branch.removed)
