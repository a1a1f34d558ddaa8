"""The claims that a build's verifiers checked, and the figures of each: `Claim`, with a type of figures per claim.

A claim about the bundle is one line for people and its figures for programs. `edgevit.verify` computes most of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from edgevit.util import strict_json

ClaimName = Literal["parity", "skip", "coverage", "bound", "accuracy"]
Decides = Literal["class", "score", "features"]
AGREES: dict[Decides, str] = {
    "class": "agrees with the float model on",
    "score": "its one score is within half a deviation of float's on",
    "features": "its features are within half a deviation of float's on",
}
F = TypeVar("F")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a build may be from its reference.

    Attributes:
        max_error: largest absolute logit difference, as a fraction of the deviation of the reference's logits.
        min_cosine: smallest cosine between the logits of one image; with fewer than 10 classes, between the logits of
            all images, counted from each class's mean.
        gate_margin: a gate whose reference logit is this near to its limit may differ, as a multiple of the length of
            its weights: rounding moves a normalised row by a share of itself, and its logit in proportion to them.
        max_flips: fraction of all runs in which a gate may differ in this way.
        token_margin: a number of merged tokens may differ where the cosines that decide are this near to the threshold.
        max_moved: fraction of all runs in which it may.
        pair_margin: a pair of tokens may be merged instead of the reference's where its cosine is this near to it.
        max_other_pairs: fraction of all merged pairs that may be others in this way.
        max_far_pairs: fraction of all merged pairs that may be others with a cosine farther away than that.
    """

    max_error: float
    min_cosine: float
    gate_margin: float
    max_flips: float
    token_margin: float = 0.0
    max_moved: float = 0.0
    pair_margin: float = 0.0
    max_other_pairs: float = 0.0
    max_far_pairs: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PathParity:
    """One path over all images. Errors are over the `compared` images, those that took the reference's path.

    `error` is relative to `deviation`, that of the reference's logits; it and `max_abs_error` are in logits. `flips`
    counts images on which a gate differed within the margin, `moved` those on which a number of tokens did; `open` is
    the mean number of branches that ran in the reference. Of `pairs` tokens that were merged before a gate differed
    `other_pairs` are not those that the reference would have merged, and give away at most `pair_loss` of their cosine,
    `far_pairs` of them more than the margin; 0 pairs: none were told, and runs whose numbers of tokens `moved` are not
    among the `compared`.
    """

    path: str
    effort: float
    images: int
    compared: int
    open: float
    flips: int
    max_abs_error: float
    error: float
    cosine: float
    deviation: float = 0.0
    moved: int = 0
    pairs: int = 0
    other_pairs: int = 0
    pair_loss: float = 0.0
    far_pairs: int = 0


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Every path, and the tolerance they held."""

    paths: tuple[PathParity, ...]
    tolerance: Tolerance

    @property
    def summary(self) -> str:
        error, cosine = max(p.error for p in self.paths), min(p.cosine for p in self.paths)
        count = len(self.paths)
        text = f"{count} path{'s' * (count != 1)}, max error {error:.2g} x logit std, min cosine {cosine:.5f}"
        if pairs := sum(p.pairs for p in self.paths):
            other, loss = sum(p.other_pairs for p in self.paths), max(p.pair_loss for p in self.paths)
            others = f"{other} of {pairs} are not the reference's, by at most {loss:.2g}"
            text += f", under the same pairs of tokens ({others})"
        return text


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """The build against the float model, and against its own graph computed as written (None: that is the former)."""

    against_float: ParityResult
    against_lowered: ParityResult | None = None


@dataclass(frozen=True, kw_only=True)
class PathNodes:
    """What one run executed: branches that ran, all nodes, and matrix kernels (Gemm, MatMul and their int8 forms)."""

    effort: float
    open: int
    nodes: int
    matrix_kernels: int


@dataclass(frozen=True, kw_only=True)
class SkipNodesResult:
    """Executed nodes per path; `matrix_kernels` are of the stem, the head, the gates and the branches that ran."""

    paths: tuple[PathNodes, ...]

    @property
    def summary(self) -> str:
        counts = sorted({(p.open, p.matrix_kernels) for p in self.paths}, reverse=True)
        listed = ", ".join(f"{kernels} with {open_} open" for open_, kernels in counts)
        return f"no node of a closed branch runs; matrix kernels: {listed}"


@dataclass(frozen=True, kw_only=True)
class PathTokens:
    """What one run had: patch tokens left after each point, and MACs, which its kernels' shapes add up to."""

    effort: float
    tokens: tuple[int, ...]
    macs: int


@dataclass(frozen=True, kw_only=True)
class TokenFigures:
    """Runs whose kernels' MACs are those of their gates and tokens."""

    paths: tuple[PathTokens, ...]

    @property
    def summary(self) -> str:
        most, fewest = max(p.macs for p in self.paths), min(p.macs for p in self.paths)
        return (
            f"MACs of {len(self.paths)} runs are exactly those of their tokens, {fewest / 1e6:.4g} to {most / 1e6:.4g} "
            "million"
        )


@dataclass(frozen=True, kw_only=True)
class SkipFigures:
    """Executed nodes (None: the runtime does not list them), and MACs of all skipped over those of all open.

    The ratio is what the times were held against; None: nothing was timed. `tokens` are runs held against the tokens
    they told (None: their number is fixed, or the runtime tells no shapes).
    """

    nodes: SkipNodesResult | None = None
    macs_ratio: float | None = None
    tokens: TokenFigures | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedException:
    """A Linear that is not plain int8: it is float, or `outliers` of its input columns are; `why` in words."""

    name: str
    int8: bool
    outliers: int
    why: str


@dataclass(frozen=True, kw_only=True)
class CoverageFigures:
    """How many of the Linears that were planned int8 run so, and those that were planned otherwise."""

    int8: int
    planned: int
    exceptions: tuple[PlannedException, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PathCheck:
    """One path against the bound; `ratio` is the bound, gaps included, over the measured peak."""

    name: str
    open_branches: int
    peak_bytes: int
    ratio: float


@dataclass(frozen=True, kw_only=True)
class BoundFigures:
    """What held on every path tried: the bound of the arena with its measured `paths`, or the whole bound with none."""

    bound_bytes: int
    paths: tuple[PathCheck, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """`hits` of `images`, with the Wilson 95 % interval `low`..`high`."""

    hits: int
    images: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, n = {self.images})"


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Float top-1 minus the build's on the same images, with the 95 % interval of paired differences (McNemar)."""

    value: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.points} points ({100 * self.low:.1f} to {100 * self.high:.1f})"

    @property
    def points(self) -> str:
        return f"{100 * self.value:.1f}"


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """What was measured; the top-1 fields are None without labels. `cosine` is of the logits with the float model's.

    `decides` says what agreement is about. On `explained` images more both would agree if the float model merged the
    tokens that the build merges, which are all but as alike as its own: that is held against `min_agreement` too.
    """

    agreement: Fraction
    cosine_mean: float
    cosine_min: float
    top1: Fraction | None
    float_top1: Fraction | None
    drop: Drop | None
    min_agreement: float
    max_top1_drop: float
    decides: Decides = "class"
    explained: int = 0

    @property
    def summary(self) -> str:
        text = f"{AGREES[self.decides]} {self.agreement}"
        if self.explained:
            same = (self.agreement.hits + self.explained) / self.agreement.images
            text += f", {same:.1%} where it merges the same tokens"
        if self.top1 and self.float_top1:
            text += f"; top-1 {self.top1}, float {self.float_top1.value:.1%}"
        return text


@dataclass(frozen=True, kw_only=True)
class OriginalResult:
    """A build and the original model in float on the same images.

    Attributes:
        agreement: of the build with the original.
        compressed_agreement: of the compressed model in float with the original (None: nothing was compressed).
        quantized_agreement: of the build with the float model that was quantized.
        top1: the build's; `original_top1` the original's (None without labels, like all drops).
        drop: the original's top-1 minus the build's.
        compression: the original's minus the compressed float model's (None: nothing was compressed).
        quantization: the float model's minus the build's.
        max_drop: points that may be lost (None: no limit).
    """

    agreement: Fraction
    compressed_agreement: Fraction | None
    quantized_agreement: Fraction
    top1: Fraction | None = None
    original_top1: Fraction | None = None
    drop: Drop | None = None
    compression: Drop | None = None
    quantization: Drop | None = None
    max_drop: float | None = None

    @property
    def lost(self) -> float:
        """Return what counts against the limit, as a fraction: top-1 where there are labels, otherwise agreement."""
        return self.drop.value if self.drop is not None else 1 - self.agreement.value

    @property
    def summary(self) -> str:
        """Return one line: what the original says, what was lost to what, and on how many images that is known."""
        parts = []
        if self.top1 and self.original_top1 and self.drop and self.quantization:
            parts.append(f"top-1 {self.top1}, original {self.original_top1.value:.1%}: lost {self.drop}")
            if self.compression:
                parts[0] += f", {self.compression.points} to compression, {self.quantization.points} to quantization"
        if self.compressed_agreement is None:
            parts.append(f"agrees with the original on {self.agreement}")
        else:
            before = f"the compressed float model on {self.compressed_agreement.value:.1%}"
            parts.append(f"agrees with the original on {self.agreement}, {before}")
            parts.append(f"with that float model on {self.quantized_agreement}")
        if self.max_drop is not None:
            beyond = 100 * self.lost > self.max_drop
            doubt = f", which {self.agreement.images} images cannot tell from this" if beyond else ""
            parts.append(f"at most {self.max_drop:g} points may be lost{doubt}")
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class AccuracyFigures:
    """The build against the float model that was quantized, and against the original (None: not known on the images).

    Both are of the same images.
    """

    against_float: AccuracyResult
    against_original: OriginalResult | None = None


Figures = ParityFigures | SkipFigures | CoverageFigures | BoundFigures | AccuracyFigures
FIGURES: dict[ClaimName, type[Figures]] = {
    "parity": ParityFigures,
    "skip": SkipFigures,
    "coverage": CoverageFigures,
    "bound": BoundFigures,
    "accuracy": AccuracyFigures,
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about the build that a verifier checked. `summary` is one line for people, e.g. '48 of 48 Gemm int8'.

    `held` None: the machine that built it could not run it, so nobody has checked yet; `summary` says why. `figures`
    are of the type that FIGURES gives for `name` (None: there are none). `proven_on` is the architecture of the
    machine that it was proven on, where the target's is another and picks its own kernels.
    """

    name: ClaimName
    held: bool | None
    summary: str
    figures: Figures | None = field(default=None, metadata=strict_json.chosen_by("name", FIGURES))
    proven_on: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.figures, FIGURES[self.name] | None):
            got, want = type(self.figures).__name__, FIGURES[self.name].__name__
            raise TypeError(f"the claim {self.name!r} got figures of type {got}, allowed: {want} or None")


def figures_of(claims: Iterable[Claim], kind: type[F]) -> F | None:
    """Return the figures of this type, those of one claim; None where there are none."""
    return next((claim.figures for claim in claims if isinstance(claim.figures, kind)), None)
