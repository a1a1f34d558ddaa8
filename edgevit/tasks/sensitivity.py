"""Measure what int8 does to a model: the error at one Linear's output, and the drift of the logits, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgevit.schema.quant_plan import LinearPlan, QuantPlan

# Logits `[n, classes]` of n fixed calibration images under a plan, or of the float model for None.
Evaluate = Callable[[QuantPlan | None], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far logits moved from the float model's, over `images` images.

    Attributes:
        kl: mean Kullback-Leibler divergence of the class probabilities, float against quantized, in nats.
        agreement: fraction of images with the same top-1 class.
        cosine: mean cosine of the logits.
        images: how many.
    """

    kl: float
    agreement: float
    cosine: float
    images: int


def drift(reference: np.ndarray, logits: np.ndarray) -> Drift:
    """Compare logits `[n, classes]` with the float model's; one logit is that of a class against nothing, 0."""
    if reference.shape[1] == 1:
        reference, logits = (np.pad(values, ((0, 0), (0, 1))) for values in (reference, logits))
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(logits, axis=1)
    return Drift(
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        agreement=float((reference.argmax(axis=1) == logits.argmax(axis=1)).mean()),
        cosine=float(((reference * logits).sum(axis=1) / np.maximum(norms, 1e-30)).mean()),
        images=len(logits),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def with_linear(plan: QuantPlan, changed: LinearPlan) -> QuantPlan:
    """Return the plan with the entry of one Linear replaced."""
    return replace(plan, linears=tuple(changed if p.name == changed.name else p for p in plan.linears))


def sensitivity(plan: QuantPlan, evaluate: Evaluate, names: Sequence[str]) -> dict[str, Drift]:
    """Return the drift that each Linear of `names` causes alone: everything else is float. One evaluation per name."""
    reference = evaluate(None)
    drifts = {}
    for name in names:
        alone = tuple(p if p.name == name else LinearPlan(name=p.name, int8=False) for p in plan.linears)
        drifts[name] = drift(reference, evaluate(replace(plan, linears=alone)))
    return drifts
