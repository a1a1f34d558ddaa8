"""`TrainRecipe`: how `edgevit compress` trains, as data; a TOML file with some of these keys changes those."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgevit.errors import TrainingError
from edgevit.util import strict_json
from edgevit.util.limits import IMAGE_SIDE, SEED, SETTINGS_BYTES, THREADS
from edgevit.util.text import listed, read_toml

Precision = Literal["auto", "float32", "bfloat16"]
Gates = Literal["learned", "measured"]
# The most that a number may be: beyond is a slip of the hand, and would fail late, in memory or in time.
MOST: dict[str, float] = {
    "epochs_joint": 100_000,
    "epochs_recover": 100_000,
    "full_epochs": 100_000,
    "views": 100_000,
    "small": IMAGE_SIDE.value,
    "batch": 1_000_000,
    "accumulate": 1_000_000,
    "threshold_images": 10_000_000,
    "gate_images": 10_000_000,
    "workers": THREADS.value,
    "seed": SEED.value,
    **dict.fromkeys(("rate_joint", "rate_recover", "gate_weight_rate", "gate_bias_rate", "skip_rate"), 1e30),
    **dict.fromkeys(("weight_decay", "temperature", "gate_noise", "gate_bias"), 1e3),
    **dict.fromkeys(("clip", "stiffness", "price_rate", "price_limit", "checkpoint_seconds"), 1e9),
}


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are varied (timm's `create_transform`).

    Attributes:
        scale_min: smallest area of the random resized crop, as a part of the image; 1 keeps all but the aspect.
        hflip: probability of a mirror image.
        color_jitter: factor of brightness, contrast and saturation; timm leaves it out beside `auto_augment`.
        auto_augment: timm's policy, such as `rand-m9-mstd0.5-inc1`, `augmix-m3-w3` or `original`; empty for none.
        erase: probability that a rectangle is erased (set to the mean).
    """

    scale_min: float = 0.6
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str = ""
    erase: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Every number of a training run; what is not the paper's (arXiv 2310.11117) is marked ours in docs/usdc.md.

    Attributes:
        epochs_joint: passes over the data of stage 1, in which structure and gates are learned together.
        epochs_recover: passes of stage 2, with the structure fixed and the gates still learning.
        small: side in pixels of the images in all epochs but the last `full_epochs` of stage 2, smaller ones cost less
            (as in DeiT III, arXiv 2204.07118, section 3); 0 for the model's own. The teacher sees them whole.
        full_epochs: how many epochs end the training with images of full size, if `small` is set.
        views: how many variants of an image there are, met in turns, so that a teacher's kept answers serve again
            (arXiv 2207.10666); 0 for a new one in each epoch.
        batch: samples of one optimiser step, over all processes and accumulated micro-batches.
        accumulate: micro-batches per step; gate groups are drawn within a micro-batch over all processes.
        rate_joint: peak learning rate of the weights in stage 1 (AdamW, warm-up, cosine).
        rate_recover: the same in stage 2.
        warmup: fraction of a stage that warms up.
        weight_decay: of matrices; biases, norms, positions and gates have none.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are the result; 0 takes the last ones.
        label_smoothing: of the cross-entropy.
        teacher: weight of the distillation loss, 0 to 1; the rest is cross-entropy. 1 needs no labels.
        temperature: of the distillation.
        tokens: weight of the squared error of normalised token streams to the teacher's, 0 to 1; the rest is the loss
            of the outputs. Needs a teacher.
        static_share: how much of the saving is static, if not asked for otherwise: of MACs m, m ** static_share is left
            by pruning (1 = no gates, 0 = no pruning).
        token_share: how much of the saving merging tokens is to bring where their plan is searched: of MACs m,
            m ** token_share is left by it, and pruning and gates share the rest.
        ramp: fraction of stage 1 over which budgets come down.
        groups: which samples share a gate's decision: batch, average N, random LO HI, recursive, halving, sample.
        gates: how gates come about: `learned` by training, from stage 1 on; `measured` on the pruned model before stage
            2, from what skipping each branch does to each of `gate_images` images.
        gate_images: how many training images gates are measured on.
        gate_noise: scale of the logistic noise on gate logits, until the last fifth of stage 2.
        gate_bias: initial logit of every gate.
        gate_weight_rate: learning rate of gate weights.
        gate_bias_rate: of gate biases.
        skip_rate: of the rows added where a branch is skipped.
        stiffness: weight of the squared gap to the budget (the paper's gamma).
        price_rate: how fast the price on MACs follows the gap.
        price_limit: largest price.
        threshold_images: images held out of the training set that set the gates' thresholds.
        crop_pct: of evaluation, as timm has it; 0 keeps the model's.
        precision: auto takes bfloat16 where the processor has instructions for it.
        workers: processes that read images.
        seed: of order, augmentation, groups and noise.
        checkpoint_seconds: time between checkpoints.
        augment: what is done to training images.
    """

    epochs_joint: int = 2
    epochs_recover: int = 4
    small: int = 0
    full_epochs: int = 2
    views: int = 0
    batch: int = 256
    accumulate: int = 1
    rate_joint: float = 2e-4
    rate_recover: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    label_smoothing: float = 0.0
    teacher: float = 0.9
    temperature: float = 2.0
    tokens: float = 0.0
    static_share: float = 0.85
    token_share: float = 0.75
    ramp: float = 0.8
    groups: str = "recursive"
    gates: Gates = "learned"
    gate_images: int = 512
    gate_noise: float = 1.0
    gate_bias: float = 2.0
    gate_weight_rate: float = 3e-3
    gate_bias_rate: float = 2e-2
    skip_rate: float = 3e-3
    stiffness: float = 100.0
    price_rate: float = 0.5
    price_limit: float = 20.0
    threshold_images: int = 1000
    crop_pct: float = 0.0
    precision: Precision = "auto"
    workers: int = 0
    seed: int = 0
    checkpoint_seconds: float = 60.0
    augment: Augment = field(default_factory=Augment)


def load_recipe(path: Path | None) -> TrainRecipe:
    """Return the recipe of a TOML file, defaults where it is silent; the default recipe without a file.

    Raises:
        TrainingError: unreadable, or with every fault at once.
    """
    if path is None:
        return TrainRecipe()
    try:
        data = read_toml(path, SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise TrainingError(f"recipe {path} cannot be read as TOML: {error}") from None
    faults: list[str] = []
    recipe = strict_json.from_data(TrainRecipe, data, faults, "recipe")
    faults += [] if recipe is None else check(recipe)
    if recipe is None or faults:
        raise TrainingError(f"recipe {path} has faults:\n{listed(faults)}")
    return recipe


def to_toml(recipe: TrainRecipe) -> str:
    """Return the recipe as text that `load_recipe` reads."""
    table = strict_json.to_data(recipe)
    augment = table.pop("augment")
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return (
        "\n".join([*lines, "", "[augment]", *(f"{key} = {json.dumps(value)}" for key, value in augment.items())]) + "\n"
    )


def check(recipe: TrainRecipe) -> list[str]:
    """Return what is impossible in a recipe, one line each."""
    r = recipe
    shares = {
        n: getattr(r, n)
        for n in (
            "warmup",
            "teacher",
            "tokens",
            "static_share",
            "token_share",
            "ramp",
            "ema",
            "label_smoothing",
            "crop_pct",
        )
    }
    faults = [f"{n}: got {v:g}, allowed: 0 to 1" for n, v in shares.items() if not 0 <= v <= 1]
    counts = {n: getattr(r, n) for n in ("batch", "accumulate", "threshold_images", "gate_images")}
    faults += [f"{n}: got {v}, allowed: 1 or more" for n, v in counts.items() if v < 1]
    positive = {n: getattr(r, n) for n in ("rate_joint", "rate_recover", "temperature", "clip")}
    faults += [f"{n}: got {v:g}, allowed: above 0" for n, v in positive.items() if not v > 0]
    natural = {n: getattr(r, n) for n in MOST if n not in counts and n not in positive and n != "gate_bias"}
    faults += [f"{n}: got {v}, allowed: 0 or more" for n, v in natural.items() if not v >= 0]
    faults += [
        f"{n}: got {getattr(r, n)}, allowed: at most {most:g}" for n, most in MOST.items() if getattr(r, n) > most
    ]
    if not r.gate_bias >= -MOST["gate_bias"]:
        faults.append(f"gate_bias: got {r.gate_bias:g}, allowed: at least {-MOST['gate_bias']:g}")
    if r.tokens and not r.teacher:
        faults.append(f"tokens: got {r.tokens:g}, allowed without a teacher (teacher is 0): 0")
    if r.accumulate >= 1 and r.batch % r.accumulate:
        faults.append(f"batch: got {r.batch}, allowed: a multiple of accumulate ({r.accumulate})")
    return faults
