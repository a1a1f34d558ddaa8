"""Open a bundle and run it; its runtime is loaded when the first image comes."""

from __future__ import annotations

import json
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevit.backends import NO_TOKENS, Runner
from edgevit.bundle import read
from edgevit.devices.local import loaded
from edgevit.errors import BundleError, ImagesError
from edgevit.images.image_set import UnreadableImage, load_images, prepare
from edgevit.program.spec import ImageSpec
from edgevit.report import notebook
from edgevit.report.view import make_report
from edgevit.schema.manifest import Manifest, counts_tokens
from edgevit.schema.points import effort_of
from edgevit.util.limits import DOCUMENT_BYTES, read_regular
from edgevit.util.notebook import Shown, draws

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | Path | Image | NDArray[np.uint8]"
SHOWN_CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class Score:
    """A class, its place among the model's classes, and its share 0..1 of the softmax over all of them."""

    label: str
    index: int
    share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer(Shown):
    """What a bundle computes for one image.

    Attributes:
        logits: float32 `[classes]`; of a model without a classifier its features.
        gates: uint8 `[branches]`, 1 where a branch ran.
        tokens: patch tokens left after each point where they merge, int32 `[points]`; none where that is fixed.
        labels: names of the classes (empty: the bundle knows none).
        scores: whether the logits score several classes, so that one can be the answer.
    """

    logits: NDArray[np.float32]
    gates: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    labels: tuple[str, ...]
    scores: bool

    def top(self, count: int = SHOWN_CLASSES) -> tuple[Score, ...]:
        """Return the `count` best classes, the best first; none if the model does not choose between classes."""
        if not self.scores:
            return ()
        weights = np.exp(self.logits.astype(np.float64) - self.logits.max())
        order = np.argsort(-weights, kind="stable")[:count]
        names = self.labels or tuple(map(str, range(len(self.logits))))
        return tuple(Score(label=names[i], index=int(i), share=float(weights[i] / weights.sum())) for i in order)


class Bundle(Shown):
    """A bundle on disk whose files are those of its manifest; see `open_bundle` and `build`.

    A context manager: at its end, or with `close`, the runtime's memory and an unpacked .zip are freed.

    Attributes:
        path: the folder or .zip that was opened.
        folder: where its files lie; of a .zip a temporary folder.
        manifest: what it says about itself.
        sha256: of its manifest.json.
        labels: names of its classes (empty: it knows none).
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path, self._threads = Path(path), threads
        self._runner: Runner | None = None
        stack = ExitStack()
        opened = stack.enter_context(read.open_bundle(self.path))
        self._opened, self._stack = opened, stack
        self.folder, self.manifest, self.sha256 = opened.folder, opened.manifest, opened.sha256
        self.labels = _labels(self.folder, self.manifest)
        self._finalize = weakref.finalize(self, stack.close)

    def run(self, image: Picture, effort: float | str = 0.0) -> Answer:
        """Compute one image on this machine, in this process; the first call loads the runtime.

        This executes what the bundle holds without the limits of `verify` and `profile`, which give a model a process
        of its own: it is for bundles that you built or trust. A model that means harm can crash this process, never
        end, or take all memory; machine code can do all that you can.

        Args:
            image: a path, a Pillow image, or a uint8 RGB array `[height, width, 3]` or `[1, height, width, 3]` of the
                model's own size. Paths and Pillow images are resized and cropped as the manifest says.
            effort: 0 as calibrated, above 0 more branches run, below 0 fewer; or the name of an operating point that
                the manifest has: "fastest", "fast", "balanced", "accurate" or "full".

        Raises:
            ImagesError: no image, or an array of another type or shape.
            OperatingPointError: the bundle has no point of that name.
            RuntimeMissingError: the bundle's runtime is not installed.
            BundleError: the bundle was closed.
        """
        value = effort_of(effort, self.manifest.points, str(self.path))
        pixels = _pixels(image, self.manifest.input.preprocessing)
        if not self._finalize.alive:
            raise BundleError(f"{self.path} was closed; open it again to run it")
        if self._runner is None:
            self._runner = self._stack.enter_context(loaded(self._opened, self._threads))
        run = self._runner.answer if counts_tokens(self.manifest) else self._runner.run
        logits, gates, *left = run(pixels, effort=value)
        kind = next(output.kind for output in self.manifest.outputs if output.name == "logits")
        return Answer(
            logits=logits[0],
            gates=gates,
            tokens=left[0] if left else NO_TOKENS,
            labels=self.labels,
            scores=kind == "scores" and logits.shape[1] > 1,
        )

    def close(self) -> None:
        """Free the runtime's memory and the unpacked .zip."""
        self._runner = None
        self._finalize()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle {str(self.path)!r}: {self.manifest.name} for {self.manifest.backend}>"


def open_bundle(path: str | Path, *, threads: int | None = None) -> Bundle:
    """Open a bundle, check every file of it against its manifest, and return it; nothing of it is executed.

    Args:
        path: the folder or the .zip that `build` wrote.
        threads: of `run` (default: the target's).

    Raises:
        BundleError: not a bundle, damaged, or of another schema version.

    Example:
        >>> with edgevit.open_bundle("out/tiny.zip") as bundle:
        ...     answer = bundle.run("photos/00.png")
        >>> len(answer.top(3)), answer.logits.shape, answer.gates.shape
        (3, (10,), (4,))
    """
    return Bundle(path, threads=threads)


def bundle_path(bundle: Bundle | str | Path) -> Path:
    """Return where a bundle lies that was given as itself or as a path."""
    return bundle.path if isinstance(bundle, Bundle) else Path(bundle)


def _pixels(image: Picture, spec: ImageSpec) -> NDArray[np.uint8]:
    """Return one image as the network takes it, uint8 `[1, height, width, 3]`."""
    if isinstance(image, str | Path):
        return load_images(Path(image), spec, limit=1).images
    if not isinstance(image, np.ndarray):
        try:
            return prepare(image.convert("RGB"), spec)[None]
        except UnreadableImage as error:
            raise ImagesError(f"the image cannot be prepared: {error}") from None
    pixels = image[None] if image.ndim == 3 else image
    if pixels.dtype != np.uint8 or pixels.shape != (1, spec.height, spec.width, 3):
        raise ImagesError(
            f"the image is {image.dtype} {list(image.shape)}; an array must be one image, uint8 RGB [{spec.height}, "
            f"{spec.width}, 3]; give a path or a Pillow image to have it resized and cropped"
        )
    return np.ascontiguousarray(pixels)


def _labels(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the classes.

    Raises:
        BundleError: the bundle's list is none of as many names as there are classes.
    """
    if manifest.labels is None:
        return ()
    classes = next(output.shape[-1] for output in manifest.outputs if output.name == "logits")
    try:
        names = json.loads(read_regular(folder / manifest.labels, DOCUMENT_BYTES))
    except (OSError, ValueError) as error:
        raise BundleError(f"{manifest.labels} of {manifest.name} cannot be read: {error}; build it again") from None
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{manifest.labels} of {manifest.name} is no list of {classes} names; build it again")
    return tuple(names)


@draws(Bundle)
def _bundle_html(bundle: Bundle) -> str:
    return notebook.report(make_report(bundle.manifest, bundle_sha256=bundle.sha256))


@draws(Answer)
def _answer_html(answer: Answer) -> str:
    ran = f"{int(answer.gates.sum())} of {len(answer.gates)} branches ran"
    rows = [(score.label, score.share) for score in answer.top()]
    shown = notebook.ranked(rows) if rows else notebook.pairs([("outputs", str(len(answer.logits)))])
    return notebook.block("Answer", shown, notebook.pairs([("gates", ran)]))
