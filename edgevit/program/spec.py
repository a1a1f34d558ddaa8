"""The frozen description of a Program: what the model is, without its numbers.

A ViT is `stem -> branches in order (b00_mhsa, b00_ffn, b01_mhsa, ...) -> head`; every branch is `x + f(norm(x))`.
The residual stream is `[tokens, dim]`: prefix tokens (class, distillation, registers) first, then patches row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BranchKind = Literal["mhsa", "ffn"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
StemKind = Literal["patch", "t2t_performer", "t2t_transformer"]
PoolKind = Literal["prefix", "mean"]
MergeRule = Literal["bipartite"]
CropMode = Literal["center", "squash", "border"]
Orientation = Literal["ignore", "apply"]
CLASS_NUMBERS = "class_numbers"  # key of an origin: the data's label of each class, separated by spaces


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How an image becomes the input `image`: uint8 RGB `[1, height, width, 3]`.

    `mean` and `std` are per channel on pixels scaled to 0..1. `crop_pct`, `interpolation` and `crop_mode` describe the
    resize and centre crop that precede the network, as timm evaluates: `center` brings the short side to
    `floor(size / crop_pct)`, `squash` both sides whatever their ratio, `border` the long side, padding the rest.
    `orientation` says whether an image's EXIF orientation is applied before that; timm ignores it.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: str
    crop_mode: CropMode = "center"
    orientation: Orientation = "ignore"


@dataclass(frozen=True, kw_only=True)
class StemSpec:
    """Image to tokens. `patch`: non-overlapping patches; `t2t_*`: T2T-ViT's soft split (patch is then 16).

    `prefix` is the number of prefix tokens; `norm` says whether a LayerNorm follows the position embedding
    (timm's `norm_pre`). `token_dim` is T2T-ViT's inner width (0 for `patch`).
    """

    kind: StemKind
    patch: int
    prefix: int
    norm: bool
    token_dim: int = 0


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """An input-dependent gate: open when `logit + effort > threshold`, logit = LN(pool(x)) . weight + bias.

    LN has no affine part (it is folded into the gate's weight) and uses the model's eps. `pool` is the class token
    (`prefix`, row 0) or the mean of all patch tokens.
    """

    pool: PoolKind
    threshold: float


@dataclass(frozen=True, kw_only=True)
class BranchSpec:
    """One residual branch. Units are attention heads (`mhsa`, of `head_dim` columns) or FFN neurons (`ffn`).

    `kept` are the indices, in the model it came from, of the units that are left; `units_total` how many there were.
    No unit left means the branch is gone (it only adds its `skip` rows, if it has them).
    `skip` says that the branch has rows `[prefix + 1, dim]` that are added to the prefix tokens and to every patch
    token when the branch does not run: the mean of what is missing.
    """

    name: str
    kind: BranchKind
    kept: tuple[int, ...]
    units_total: int
    head_dim: int = 0
    scale: float = 0.0
    qk_norm: bool = False
    activation: Activation = "gelu"
    gate: GateSpec | None = None
    skip: bool = False

    @property
    def units(self) -> int:
        return len(self.kept)

    @property
    def removed(self) -> bool:
        return not self.kept

    @property
    def width(self) -> int:
        """Return columns of the branch's inner activation: heads x head_dim, or neurons."""
        return self.units * self.head_dim if self.kind == "mhsa" else self.units


@dataclass(frozen=True, kw_only=True)
class MergeSpec:
    """A point of the stream where patch tokens are merged: after branch `after`, some pairs, each into one token.

    Without a `threshold` these are the `count` best pairs. With one their number follows the image: pairs whose cosine
    is above `threshold` + `tokens.MERGE_EFFORT` x effort, but at least `least` and at most `count` of them, best first,
    and of the numbers between these one that leaves a multiple of `step` as rows (`tokens.pair_counts`). Without
    `whole`, as Programs had it before, that number of pairs is itself a multiple of `step`, or `count`.

    Pairs are ranked by the product of their normalised rows over the width, the cosine. With `shift` the point has a
    row `<after>.merge.shift` `[dim]`, which is taken from the normalised rows first: tokens that matter then look less
    alike (`compress.tokens.guard`), and the threshold is of those products.

    Rule `bipartite`: see `torch_form.tokens`. Prefix tokens are never merged. A merged token stands for `size` patches:
    its row is their mean, attention adds log(size) to the scores of its key, and means over patches weigh it by size.
    """

    after: str
    count: int
    least: int = 0
    threshold: float | None = None
    step: int = 8
    whole: bool = False
    shift: bool = False
    rule: MergeRule = "bipartite"

    @property
    def fewest(self) -> int:
        """Return how many pairs are merged for every image."""
        return self.count if self.threshold is None else self.least


def shift_name(point: MergeSpec) -> str:
    """Return the name of the array that a point with `shift` has."""
    return f"{point.after}.merge.shift"


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Tokens to logits: [norm over tokens] -> pool -> [norm over the pooled row] -> linear.

    Pool `prefix` flattens the first `prefix` tokens (2 for distilled models, whose two heads are averaged into one
    linear over both tokens); `mean` averages the patch tokens. `classes` is the length of the output; with
    `linear` false there is no classifier and the output is the pooled row.
    """

    pool: PoolKind
    prefix: int
    norm: bool
    pooled_norm: bool
    classes: int
    linear: bool = True

    @property
    def decides(self) -> bool:
        """Return whether the output is scores of several classes, of which one is the largest."""
        return self.linear and self.classes > 1


@dataclass(frozen=True, kw_only=True)
class OriginalEvaluation:
    """What the original model in float said on one set of images, and how the Program compared with it there.

    Attributes:
        source: name of the set.
        images: how many.
        input_sha256: over the pixels, and the mean and std that the Program scales them by ("": not recorded).
        answers: the class that the original named for every image, separated by spaces ("": not recorded, or no longer
            this Program's numbers). With it anything made of the Program is compared without the original's weights.
        logits_sha256: over the original's logits, float32 `[images, classes]`, on the machine that evaluated: equal
            hashes are equal outputs; processors round differently, so other hashes mean nothing.
        classes: how many the head had then.
        agreement: fraction of the images for which the Program, in float, named the same class (None: not recorded).
        original_top1, top1: of the original and of the Program in float (None: no labels).
    """

    source: str
    images: int
    classes: int
    input_sha256: str = ""
    answers: str = ""
    logits_sha256: str = ""
    agreement: float | None = None
    original_top1: float | None = None
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class OriginalSpec:
    """The model that a Program was compressed from: what every figure of it is held against.

    `weights_sha256` is `weights_digest` of it ("": not recorded), `macs` per image, `steps` what was done to it, one
    sentence each. `new_head`: its classifier had learned nothing yet, so its answers say nothing.
    """

    name: str
    weights_sha256: str
    macs: int
    parameters: int
    steps: tuple[str, ...] = ()
    new_head: bool = False
    evaluations: tuple[OriginalEvaluation, ...] = ()

    @property
    def float_bytes(self) -> int:
        return 4 * self.parameters


@dataclass(frozen=True, kw_only=True)
class ProgramSpec:
    """Everything about a model except its arrays. `origin` tells where it came from and under which licence.

    `original` is the model that it was compressed from; None: it is nobody's, or an older edgevit did not keep it.
    `merges` are the points where tokens are merged, in the order of the branches.
    """

    name: str
    image: ImageSpec
    dim: int
    norm_eps: float
    qk_norm_eps: float
    stem: StemSpec
    branches: tuple[BranchSpec, ...]
    head: HeadSpec
    origin: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    original: OriginalSpec | None = None
    merges: tuple[MergeSpec, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        return self.image.height // self.stem.patch, self.image.width // self.stem.patch

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def tokens(self) -> int:
        """Return token rows of the stream after the stem."""
        return self.stem.prefix + self.patches

    @property
    def class_numbers(self) -> tuple[int, ...]:
        """Return the label that the training data gave each class: its place, unless the origin says otherwise."""
        written = self.origin.get(CLASS_NUMBERS)
        return tuple(map(int, written.split())) if written else tuple(range(self.head.classes))

    @property
    def gated(self) -> bool:
        return any(b.gate is not None for b in self.branches)

    @property
    def adaptive(self) -> bool:
        """Return whether the number of tokens that are merged follows the image."""
        return any(point.threshold is not None for point in self.merges)

    @property
    def steered(self) -> bool:
        """Return whether `effort` moves anything: gates, or thresholds of merges."""
        return self.gated or self.adaptive

    @property
    def compressed(self) -> bool:
        """Whether the model is less than its original: it is kept, units are gone, tokens merge, or there are gates."""
        lessened = bool(self.merges) or any(
            b.gate is not None or b.skip or b.units < b.units_total for b in self.branches
        )
        return self.original is not None or lessened
