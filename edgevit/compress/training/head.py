"""The first weights of a new head: a linear classifier on the features of the model as it was given.

Importance is a derivative of the loss, and behind a head of zeros every derivative is zero. Fitting the head before
anything else (as linear probing before fine-tuning, arXiv 2202.10054) gives importance something to say from the first
step on, however few there are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.training.batches import evaluation
from edgevit.images.labelled import LabelledSet, subset
from edgevit.program.program import Program
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Vit

IMAGES = 1000
PER_CLASS = 4
CHUNK = 250
DECAY = 0.1  # of half the squared weights, per variance of the features, beside the mean cross-entropy
STEPS = 100


def is_new(program: Program) -> bool:
    """Return whether the classifier is all zeros, as a new one starts."""
    return program.spec.head.linear and not program.weights["head.weight"].any()


def fit_head(program: Program, data: LabelledSet, seed: int) -> Program:
    """Fit the classifier to labelled images of `data`: 1000, or 4 a class if that is more; return the Program.

    Multinomial logistic regression with weight decay, solved to its one optimum.

    Raises:
        ImagesError: too many unreadable images.
    """
    labelled = np.zeros(0, np.int64) if data.labels is None else np.flatnonzero(data.labels >= 0)
    if not len(labelled):
        return program
    count = max(IMAGES, PER_CLASS * program.spec.head.classes)
    chosen = np.random.default_rng([*b"head", seed]).permutation(labelled)[:count]
    features, labels = _features(program, data, chosen)
    weight, bias = _regression(features, labels, program.spec.head.classes)
    return program.with_weights({"head.weight": weight.numpy(), "head.bias": bias.numpy()})


@torch.no_grad()
def _features(program: Program, data: LabelledSet, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return what the classifier reads, float32 `[n, width]`, and labels `[n]`."""
    model, found, labels = Vit(program).eval().requires_grad_(False), list[Tensor](), list[np.ndarray]()

    def keep(name: str, value: Tensor) -> Tensor:
        if name == "head":
            found.append(value)
        return value

    for start in range(0, len(chosen), CHUNK):
        images, known = evaluation(subset(data, chosen[start : start + CHUNK]), program.spec.image)
        for batch in batches(program.spec, images) if len(images) else ():
            model(batch, None, keep, trim=True)
        labels.append(known)
    return torch.cat(found), torch.from_numpy(np.concatenate(labels))


def _regression(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight `[width, classes]` and bias `[classes]`."""
    weight = torch.zeros(features.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    decay = DECAY * float(features.var(correction=0))
    solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(features @ weight + bias, labels) + decay / 2 * (weight**2).sum()
        torch.autograd.backward(value)
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
