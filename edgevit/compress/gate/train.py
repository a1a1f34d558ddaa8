"""Attach a gate to every branch and train only the gates, without labels.

Per image and branch a gate (one logit from the normalised class token, or from the mean token) decides whether the
branch runs; where it does not, its `skip` rows are added instead. Straight-through sigmoid with logistic (Gumbel
difference) noise as AdaViT's public code does, a distillation loss against the dense model's logits, and a compute term
with a bounded multiplier that holds the expected MACs at the budget. All other weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgevit.compress.gate.initial import initial_gates
from edgevit.compress.gate.threshold import calibrate_thresholds, check_spent, fixed_macs
from edgevit.errors import BudgetError
from edgevit.program.macs import macs_by_branch, total_macs
from edgevit.program.program import Program
from edgevit.program.spec import GateSpec, PoolKind, ProgramSpec
from edgevit.torch_form.stream import batches
from edgevit.torch_form.vit import Decide, Vit
from edgevit.util.progress import track

SCORED_IMAGES = 96
HELD_OUT = 4  # every 4th image is kept from training and sets the thresholds
MAX_MULTIPLIER = 50.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How gates are trained; the defaults are what measured best (benchmarks/compression_curve.py)."""

    batch: int = 16
    noise: float = 1.0
    temperature: float = 1.0
    weight_rate: float = 3e-3
    bias_rate: float = 1e-1
    skip_rate: float = 2e-2
    weight_decay: float = 1e-2
    stiffness: float = 100.0
    multiplier_rate: float = 10.0
    spread: float = 2.0


def train_gates(
    program: Program,
    images: np.ndarray,
    budget: float,
    *,
    teacher: Program | None = None,
    seed: int = 0,
    epochs: int = 3,
    settings: Settings | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Program:
    """The Program with a trained gate and skip rows on every branch.

    Args:
        program: ungated; may be pruned.
        images: unlabelled calibration images, uint8 `[n, height, width, 3]`; a quarter only sets the thresholds.
        budget: expected MACs per image as a fraction of `program`'s own.
        teacher: whose outputs to reproduce; `program` with all gates open by default.
        seed: of batch order, flips and noise.
        epochs: passes over the images; 0 keeps the measured initial gates.
        settings: rates and penalties.
        say: told where gates can only come near the budget.

    Raises:
        BudgetError: the budget is not in (0, 1], below what stem, head and gates cost, or missed; or skipping branches
            changes no output, so that nothing can be learned.
        ImagesError: the images are not what the model takes.
    """
    settings = settings or Settings()
    gated = attach_gates(program)
    _check_budget(gated.spec, budget)
    held = images[HELD_OUT - 1 :: HELD_OUT] if len(images) >= 2 * HELD_OUT else images
    trained = np.delete(images, np.s_[HELD_OUT - 1 :: HELD_OUT], axis=0) if len(images) >= 2 * HELD_OUT else images
    gated = initial_gates(gated, trained[:SCORED_IMAGES], budget, settings.spread)
    if epochs:
        gated = _fit(gated, teacher or program, trained, budget, seed, epochs, settings)
    gated = calibrate_thresholds(gated, held, budget)
    note = check_spent(gated, held, budget * total_macs(gated.spec), total_macs(gated.spec))
    if note:
        say(f"warning: {note}")
    return gated


def attach_gates(program: Program) -> Program:
    """A gate (weight and bias 0) and skip rows (0 where there were none) for every branch that is left."""
    spec = program.spec
    pool: PoolKind = "prefix" if spec.stem.prefix else "mean"
    branches = tuple(
        b if b.removed else replace(b, gate=GateSpec(pool=pool, threshold=0.0), skip=True) for b in spec.branches
    )
    new: dict[str, np.ndarray] = {}
    for branch in branches:
        if branch.gate is not None:
            new[f"{branch.name}.gate.weight"] = np.zeros(spec.dim, np.float32)
            new[f"{branch.name}.gate.bias"] = np.zeros(1, np.float32)
            new[f"{branch.name}.skip"] = np.zeros((spec.stem.prefix + 1, spec.dim), np.float32)
    return program.with_weights(new, replace(spec, branches=branches))


def _check_budget(spec: ProgramSpec, budget: float) -> None:
    floor = fixed_macs(spec) / total_macs(spec)
    if not floor < budget <= 1:
        raise BudgetError(
            f"gate budget {budget:g} cannot be met by {spec.name}: stem, head and gates always run and are {floor:.1%} "
            f"of the MACs; choose a budget above {floor:.3f} and at most 1"
        )


def _divergence(logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """KL(reference || logits) at a temperature, per image; `reference` are log-probabilities at that temperature."""
    student = (logits / temperature).log_softmax(dim=-1)
    return F.kl_div(student, reference, reduction="batchmean", log_target=True) * temperature**2


def _fit(
    program: Program,
    teacher: Program,
    images: np.ndarray,
    budget: float,
    seed: int,
    epochs: int,
    settings: Settings,
) -> Program:
    spec, model = program.spec, Vit(program).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(_groups(model, settings), betas=(0.9, 0.98))
    rates = [g["lr"] for g in optimiser.param_groups]
    generator = torch.Generator().manual_seed(seed)
    size = settings.batch
    reference = _references(teacher, images, settings.temperature)
    shares = torch.tensor(macs_by_branch(spec), dtype=torch.float32) / total_macs(spec)
    floor, multiplier = fixed_macs(spec) / total_macs(spec), 0.0
    steps = [b for _ in range(epochs) for b in torch.split(torch.randperm(len(images), generator=generator), size)]
    for done, picked in enumerate(track(steps, "Training gates")):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * done / len(steps)))
        flip = int(torch.randint(2, (1,), generator=generator))
        chosen = images[picked.numpy()][:, :, ::-1] if flip else images[picked.numpy()]
        gates: dict[int, Tensor] = {}
        logits = model(batches(spec, chosen, size)[0], _noisy_gates(model, settings.noise, generator, gates))
        over = floor - budget + torch.stack([g.mean() * shares[i] for i, g in gates.items()]).sum()
        loss = _divergence(logits, reference[flip][picked], settings.temperature)
        loss = loss + multiplier * over + settings.stiffness / 2 * over**2
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        multiplier += settings.multiplier_rate * float(over.detach())
        multiplier = float(np.clip(multiplier, -MAX_MULTIPLIER, MAX_MULTIPLIER))
    return model.requires_grad_(False).to_program()


def _groups(model: Vit, settings: Settings) -> list[dict[str, object]]:
    """Parameter groups; only gates and the skip rows of gated branches learn."""
    groups: dict[str, list[Tensor]] = {"gate.weight": [], "gate.bias": [], "skip": []}
    for branch in model.spec.branches:
        if branch.gate is not None:
            for part, members in groups.items():
                members.append(model.array(f"{branch.name}.{part}").requires_grad_(True))
    return [
        {"params": groups["gate.weight"], "lr": settings.weight_rate, "weight_decay": settings.weight_decay},
        {"params": groups["gate.bias"], "lr": settings.bias_rate, "weight_decay": 0.0},
        {"params": groups["skip"], "lr": settings.skip_rate, "weight_decay": 0.0},
    ]


@torch.no_grad()
def _references(teacher: Program, images: np.ndarray, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the teacher for the images and for their mirror images."""
    model = Vit(teacher).eval().requires_grad_(False)
    plain, mirrored = (torch.cat([model(b) for b in batches(teacher.spec, x)]) for x in (images, images[:, :, ::-1]))
    return (plain / temperature).log_softmax(dim=-1), (mirrored / temperature).log_softmax(dim=-1)


def _noisy_gates(model: Vit, noise: float, generator: torch.Generator, seen: dict[int, Tensor]) -> Decide:
    """Decide hard, differentiate soft; every decision is left in `seen`."""

    def decide(index: int, x: Tensor) -> Tensor:
        logit = model.gate_logit(model.spec.branches[index], x)
        u = torch.rand(logit.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid(logit + noise * (u.log() - (1 - u).log()))
        seen[index] = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
        return seen[index]

    return decide
