"""What a bundle says about itself (`manifest.json`); what a device measured of it is in `measurement.py`.

Plain data: numbers are numbers, their unit is the end of their name. A bundle is never changed after it is written.
`manifest_file.py` reads it, also that of an older edgevit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgevit.program.spec import BranchKind, ImageSpec, OriginalSpec
from edgevit.schema.claims import Claim
from edgevit.schema.memory_bound import MemoryBound
from edgevit.schema.points import OperatingPoint
from edgevit.schema.recipe import Recipe
from edgevit.schema.target import Target

MANIFEST_SCHEMA: Literal[3] = 3

# Added to every gate logit, these open or close all gates: finite, because JSON knows no infinity.
EFFORT_ALL_OPEN = 1e30
EFFORT_ALL_SKIPPED = -1e30

PIXELS = (
    "the first frame, as 8-bit RGB without alpha; palettes and CMYK as Pillow converts them; grey of 9 to 16 bits "
    "scaled to 8, float and 32-bit values refused; the EXIF orientation as preprocessing.orientation says (a TIFF's "
    "own is always applied)"
)

PathName = Literal["all_open", "all_skipped", "real"]
Setting = str | int | bool


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """The input `image` and how a picture becomes it: uint8 RGB `[1, height, width, 3]`, resized and cropped only.

    `pixels` says what of a picture's file is taken before that.
    """

    name: str = "image"
    dtype: str = "uint8"
    shape: tuple[int, int, int, int]
    preprocessing: ImageSpec
    pixels: str = PIXELS


@dataclass(frozen=True, kw_only=True)
class EffortContract:
    """The input `effort`, a float32 scalar added to every gate logit: trades accuracy for time while running.

    Where the number of tokens follows the image it raises the thresholds of merges too, so that fewer are merged.
    """

    name: str = "effort"
    default: float = 0.0
    all_open: float = EFFORT_ALL_OPEN
    all_skipped: float = EFFORT_ALL_SKIPPED
    meaning: str = "added to every gate logit: 0 as calibrated, above 0 opens more branches, below 0 skips more"


@dataclass(frozen=True, kw_only=True)
class OutputContract:
    """One output of the model; `kind` says whether the numbers score classes, or are the features themselves."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    kind: Literal["scores", "features", "gates", "tokens"] = "scores"


@dataclass(frozen=True, kw_only=True)
class BranchFacts:
    """One residual branch as built; one row of the report.

    `macs` when it runs, `dense_macs` before pruning. `open_rate` on the calibration images (None: not gated).
    `memory_bytes`: the branch's own frame in the memory bound (None: the runtime does not tell). `error`: of the stream
    after it, int8 against float, as a fraction of the stream's length, every branch open (None: not measured).
    """

    name: str
    kind: BranchKind
    units: int
    units_total: int
    macs: int
    dense_macs: int
    gated: bool
    threshold: float | None = None
    open_rate: float | None = None
    memory_bytes: int | None = None
    int8_linears: int = 0
    linears: int = 0
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Before and after. `float_bytes`: the dense model's weights as float32; `model_bytes`: what the device loads."""

    model_bytes: int
    float_bytes: int
    parameters: int
    dense_parameters: int


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one image. `expected` weighs every branch by its open rate on the calibration images.

    Where the number of tokens follows the image, `all_open` is with most of them, `all_skipped` with fewest, and
    `expected` the mean over the calibration images.
    """

    dense: int
    all_open: int
    all_skipped: int
    expected: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over images: its mean, and the 10th and 90th percentile."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PointUse:
    """Patch tokens left after one point where they merge: over images, and the `most` and `fewest` there can be."""

    after: str
    left: Spread
    most: int
    fewest: int


@dataclass(frozen=True, kw_only=True)
class TokenUse:
    """How many tokens, and so MACs, the calibration images take where that follows the image."""

    images: int
    macs: Spread
    points: tuple[PointUse, ...]


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """One measured fraction: top-1 or top-5 on labelled images, or agreement with another model on any.

    `model` says of what: 'original' in float, 'compressed' (the Program in float; absent where nothing was compressed)
    or 'bundle'. An agreement is with the model `against`: the original, or the float model that was quantized.
    `low`..`high` is the 95 % interval, `images` is n.
    """

    model: Literal["original", "compressed", "bundle"]
    metric: Literal["top1", "top5", "agreement"]
    value: float
    low: float
    high: float
    images: int
    path: PathName = "real"
    against: Literal["original", "float"] = "float"


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """An input with the outputs it must give: files in the bundle. Gates must be equal, logits within tolerance.

    `tokens` too must be equal: patch tokens left after each point where they merge (None: not compared, because their
    number does not follow the image or lies near the next one, or an older edgevit kept none).
    """

    path: PathName
    effort: float
    image: str
    logits: str
    gates: str
    tokens: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files of the case."""
        return (self.image, self.logits, self.gates, *([self.tokens] if self.tokens is not None else []))


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """A file of the bundle, by its path inside it."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`. `files` lists every file of the bundle but the manifest itself.

    `target` is the whole target, `recipe` how the bundle was made, `tools` versions by package, `origin` where the
    weights came from, their licence and credit, `original` the model that was compressed (None: the bundle's is its own
    original, or an older edgevit did not keep it). `models` maps a format of the target ('onnx', 'ir', ...) to the
    file a runtime loads; `model` is the one that was verified, `runtime_settings` how it was loaded (threads are the
    device's choice). `golden_tolerance` is the largest absolute logit difference that `edgevit verify` accepts.
    `tokens` says how many an image has where that follows the image (None: their number is fixed).
    `points` are efforts that the build was measured at, from the cheapest; none where all images run the same.
    `sha256` is of `manifest.json` without it, and tells damage only ('': written before there was one).
    """

    schema: Literal[3] = MANIFEST_SCHEMA
    name: str
    backend: str
    target: Target
    recipe: Recipe
    tools: dict[str, str]
    origin: dict[str, str]
    input: InputContract
    effort: EffortContract | None
    outputs: tuple[OutputContract, ...]
    model: str
    models: dict[str, str]
    runtime_settings: dict[str, Setting]
    branches: tuple[BranchFacts, ...]
    sizes: Sizes
    macs: Macs
    bound: MemoryBound
    claims: tuple[Claim, ...]
    accuracy: tuple[AccuracyRow, ...]
    golden: tuple[GoldenCase, ...] = ()
    golden_tolerance: float
    labels: str | None = None
    original: OriginalSpec | None = None
    tokens: TokenUse | None = None
    points: tuple[OperatingPoint, ...] = ()
    files: tuple[BundleFile, ...] = ()
    sha256: str = ""


def counts_tokens(manifest: Manifest) -> bool:
    """Return whether a run tells how many tokens were left, because that follows the image."""
    return any(output.kind == "tokens" for output in manifest.outputs)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose hashes held: its folder, its manifest and the sha256 of `manifest.json`."""

    folder: Path
    manifest: Manifest
    sha256: str
