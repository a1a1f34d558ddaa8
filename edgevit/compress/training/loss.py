"""What training minimises besides the price of MACs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def task_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    *,
    weight: float,
    temperature: float,
    smoothing: float,
) -> Tensor:
    """Return (1 - weight) * cross-entropy + weight * T^2 * KL(teacher || student), means over the batch.

    Args:
        logits: `[B, classes]`, float.
        labels: int64 `[B]`; not read when the weight is 1.
        teacher: the dense model's logits `[B, classes]`, or None: cross-entropy alone.
        weight: of the distillation.
        temperature: T of the distillation.
        smoothing: of the labels.
    """
    logits = logits.float()
    if teacher is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    soft = (teacher.float() / temperature).log_softmax(dim=-1)
    student = (logits / temperature).log_softmax(dim=-1)
    distilled = F.kl_div(student, soft, reduction="batchmean", log_target=True) * temperature**2
    if weight >= 1:
        return distilled
    return weight * distilled + (1 - weight) * F.cross_entropy(logits, labels, label_smoothing=smoothing)
