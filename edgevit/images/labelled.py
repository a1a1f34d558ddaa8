"""Labelled images to train and test on, read one by one: folders, archives, manifests and .npz files of JPEG bytes.

Nothing is decoded when a set is opened, and no file stays open: a set can be pickled and read by any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevit.errors import ImagesError
from edgevit.images.image_set import UnreadableImage, check_unreadable, open_image, prepare, spread
from edgevit.images.match import UNLABELLED, Labelling, place_labels
from edgevit.images.sources import Entry, labelling, list_images, split_name
from edgevit.program.spec import ImageSpec, ProgramSpec
from edgevit.util.progress import track


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSet:
    """Images that are read when asked for.

    Attributes:
        source: where they came from.
        names: `[n]`, each image's name within the source.
        labels: int64 `[n]`, -1 for an image without one; None where no image has one (the dense model then teaches).
        classes: names by label; empty where the source gives none.
        splits: the splits that the source knows, whichever of them this is; empty where it knows none.
        digest: sha256 of names and labels (of an archive also its size): a cheap check that a set is the same.
        pictures: index to RGB image; raises UnreadableImage.
        labelling: what the labels are, of the whole source.
    """

    source: str
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    digest: str
    pictures: Callable[[int], Image.Image]
    labelling: Labelling = Labelling()

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Image.Image:
        """Return the image at `index`, RGB, in its own size; raises `edgevit.images.image_set.UnreadableImage`."""
        return self.pictures(index)

    def label(self, index: int) -> int:
        """Return the label at `index`, -1 where there is none."""
        return UNLABELLED if self.labels is None else int(self.labels[index])


def open_labelled(source: Path, *, split: str | None = None) -> LabelledSet:
    """Open what `sources.list_images` lists.

    `split` picks the images of one split ('train', 'val' or 'test', where valid and validation are val; or a name of
    the table's own); None takes all. A source that knows no splits is one training split: asked for `train` it gives
    everything, asked for another it refuses, so that nothing is tested on what it was trained with.

    Raises:
        ImagesError: the source cannot be read, holds no images, or not the split.
    """
    entries = list_images(source)
    data = _from_entries(source, entries)
    if split is not None and data.splits:
        wanted = split_name(split)
        chosen = [i for i, entry in enumerate(entries) if entry.split == wanted]
        if not chosen:
            raise ImagesError(f"{source} has no split {split!r}; it has: {', '.join(data.splits)}")
        return subset(data, chosen)
    if split is not None and not data.splits and split_name(split) != "train":
        raise ImagesError(
            f"{source} has no split {split!r}: it knows no splits. Give a source of its own for it, a labels.csv with "
            "a column 'split', or folders train and val; or hold out a part of the training images"
        )
    return data


def subset(data: LabelledSet, indices: Sequence[int] | NDArray[np.int64]) -> LabelledSet:
    """Return the images at `indices`, in that order; classes and splits stay those of the whole."""
    chosen = np.asarray(indices, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(data)):
        raise ImagesError(f"{data.source}: got an index outside 0 to {len(data) - 1}")
    names = tuple(data.names[i] for i in chosen)
    labels = None if data.labels is None else data.labels[chosen]
    digest = _digest(names, labels, data.digest)
    return replace(data, names=names, labels=labels, digest=digest, pictures=_Chosen(data.pictures, chosen))


def hold_out(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split `[n]` labels into sorted indices to train on and to hold out, in equal parts of every class.

    round(n x fraction) images are held out, of each class that share rounded up or down; every class keeps an image to
    train on. For a set without labels pass zeros.

    Raises:
        ImagesError: the fraction is not at least 0 and below 1.
    """
    if not 0 <= fraction < 1:
        raise ImagesError(f"the fraction to hold out is {fraction:g}; allowed: at least 0 and below 1, such as 0.1")
    generator = np.random.default_rng([*b"hold out", seed % 2**64])
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * fraction
    held = np.floor(shares).astype(np.int64)
    # The largest remainders are rounded up; a class never gives its last image.
    order = np.lexsort((generator.permutation(len(classes)), held - shares))
    room = [c for c in order if held[c] < shares[c] and held[c] < counts[c] - 1]
    held[room[: max(0, round(len(labels) * fraction) - int(held.sum()))]] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for name, count in zip(classes, held, strict=True):
        members = np.flatnonzero(labels == name)
        chosen[generator.permutation(members)[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def compact_labels(data: LabelledSet, originals: tuple[int, ...] | None = None) -> tuple[LabelledSet, tuple[int, ...]]:
    """Number the labels 0, 1, 2, ... without gaps, and tell which label each number was.

    Ten classes of ImageNet become ten classes, whose rows of an ImageNet head are `originals`. Passing a training set's
    `originals` gives its test set the same numbers.

    Raises:
        ImagesError: the set has no labels, or labels that are not among `originals`.
    """
    if data.labels is None:
        raise ImagesError(f"{data.source} has no labels to number")
    known = np.unique(data.labels[data.labels != UNLABELLED])
    kept = known if originals is None else np.array(originals, dtype=np.int64)
    unknown = np.setdiff1d(known, kept)
    if len(unknown):
        raise ImagesError(
            f"{data.source} has labels that are no classes of the model: got {_some(unknown)}; allowed: {_some(kept)}. "
            "Give images of these classes, under the numbers that the model has for them"
        )
    order = np.argsort(kept, kind="stable")
    places = (
        order[np.searchsorted(kept, data.labels, sorter=order).clip(max=len(kept) - 1)] if len(kept) else data.labels
    )
    labels = np.where(data.labels == UNLABELLED, UNLABELLED, places).astype(np.int64)
    classes = tuple(data.classes[i] if i < len(data.classes) else "" for i in kept) if data.classes else ()
    numbered = replace(data, labels=labels, classes=classes, digest=_digest(data.names, labels, data.digest))
    names = dict(enumerate(classes or [""] * len(kept)))
    return replace(numbered, labelling=Labelling(basis="given", names=names)), tuple(int(i) for i in kept)


def place_set(data: LabelledSet, spec: ProgramSpec) -> tuple[LabelledSet, str]:
    """The set with a model's classes as labels, and a line that says how they were found (see `match.place_labels`).

    Raises:
        ImagesError: the set has no labels, or labels that are no classes of the model.
    """
    if data.labels is None:
        raise ImagesError(f"{data.source} has no labels to number")
    labels, how = place_labels(data.labels, data.labelling, spec, data.source)
    named = Labelling(basis="given", names=dict(enumerate(spec.labels or [""] * spec.head.classes)))
    digest = data.digest if np.array_equal(labels, data.labels) else _digest(data.names, labels, data.digest)
    return replace(data, labels=labels, classes=spec.labels, digest=digest, labelling=named), how


def check_labels(data: LabelledSet, classes: int) -> None:
    """Check that the labels fit a model of `classes` classes; a set without labels passes.

    Raises:
        ImagesError: labels out of range, fewer images than classes, or a class without any image.
    """
    if data.labels is None:
        return
    known = data.labels[data.labels != UNLABELLED]
    wrong = np.unique(known[(known < 0) | (known >= classes)])
    if len(wrong):
        first = int(np.flatnonzero(np.isin(data.labels, wrong))[0])
        raise ImagesError(
            f"{data.source}: labels out of range: got {_some(wrong)} (first: {data.names[first]}); allowed: 0 to "
            f"{classes - 1}. Correct the labels, or train a model with {int(known.max()) + 1} classes"
        )
    if len(known) < classes:
        raise ImagesError(
            f"{data.source} is too small a data set for the classes: got {len(known)} labelled images, needed: at "
            f"least one for each of {classes} classes. Add images, or train a model with fewer classes"
        )
    missing = np.setdiff1d(np.arange(classes), known)
    if len(missing):
        names = [f"{c} ({data.classes[c]})" if c < len(data.classes) and data.classes[c] else str(c) for c in missing]
        raise ImagesError(
            f"{data.source} has no image of {len(missing)} of {classes} classes: {_some(names)}. Every class needs "
            "one: add images, or number the classes without gaps and train a model with as many"
        )


def prepare_all(
    data: LabelledSet, image: ImageSpec, limit: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images as the network is evaluated on them: uint8 `[n, height, width, 3]`, labels int64 `[n]` (-1: none).

    `limit` takes that many, evenly spread over the set. Unreadable images are left out.

    Raises:
        ImagesError: more than 10 % of the images are unreadable.
    """
    chosen = spread(range(len(data)), limit)
    pixels = np.empty((len(chosen), image.height, image.width, 3), dtype=np.uint8)
    labels: list[int] = []
    unreadable: list[str] = []
    for index in track(chosen, f"Reading {len(chosen)} images"):
        try:
            pixels[len(labels)] = prepare(data.picture(index), image)
        except UnreadableImage as error:
            unreadable.append(f"{data.names[index]}: {error}")
        else:
            labels.append(data.label(index))
    check_unreadable(data.source, unreadable, len(chosen))
    return pixels[: len(labels)], np.array(labels, dtype=np.int64)


def labelled_set(
    *,
    source: str,
    names: tuple[str, ...],
    labels: Sequence[int] | NDArray[np.int64] | None,
    pictures: Callable[[int], Image.Image],
    classes: tuple[str, ...] = (),
    splits: tuple[str, ...] = (),
    content: str = "",
    meaning: Labelling | None = None,
) -> LabelledSet:
    """Return a set from its parts; `content` is what its digest should depend on besides names and labels.

    `meaning` is of the labels; None takes them as given, named by `classes`.
    """
    array = None if labels is None else np.asarray(labels, dtype=np.int64)
    if array is not None and (array == UNLABELLED).all():
        array = None
    if meaning is None and array is not None:
        present = np.unique(array[array != UNLABELLED]).tolist()
        meaning = Labelling(basis="given", names={n: classes[n] if n < len(classes) else "" for n in present})
    return LabelledSet(
        source=source,
        names=names,
        labels=array,
        classes=classes,
        splits=splits,
        digest=_digest(names, array, content),
        pictures=pictures,
        labelling=meaning or Labelling(),
    )


@dataclass(frozen=True)
class _Chosen:
    pictures: Callable[[int], Image.Image]
    indices: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return self.pictures(int(self.indices[index]))


@dataclass(frozen=True)
class _Entries:
    entries: tuple[Entry, ...]

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.entries[index])


def _from_entries(source: Path, entries: tuple[Entry, ...]) -> LabelledSet:
    names_by_label = {e.label: e.class_name for e in entries if e.label is not None and e.class_name}
    return labelled_set(
        source=str(source),
        names=tuple(e.name for e in entries),
        labels=[UNLABELLED if e.label is None else e.label for e in entries],
        pictures=_Entries(entries),
        classes=tuple(names_by_label.get(i, "") for i in range(max(names_by_label, default=-1) + 1)),
        splits=tuple(sorted({e.split for e in entries} - {""})),
        content=str(source.stat().st_size) if source.is_file() else "",
        meaning=labelling(entries),
    )


def _digest(names: tuple[str, ...], labels: NDArray[np.int64] | None, content: str) -> str:
    digest = hashlib.sha256(content.encode())
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _some(values: Sequence[object] | NDArray[np.int64]) -> str:
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown} and {len(values) - 8} more" if len(values) > 8 else shown
