"""The labels of a source to the classes of a model: by name where both have names, else by number or by order.

What a source means is taken from it or refused; nothing is shifted to make it fit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import ImagesError
from edgevit.program.spec import CLASS_NUMBERS, ProgramSpec

UNLABELLED = -1
Basis = Literal["none", "given", "number", "order"]
Placed = Mapping[int, int]
CHANCE_IMAGES = 20  # fewer say nothing about chance
REMEDY = "rename the folders, or give a labels.csv with the columns file,label"


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What a source says about its labels.

    Attributes:
        basis: `given` by a table, a manifest, an .npz or a data set; the `number` that a class folder is called;
            the place of a class folder in natural `order`; `none` where there are no labels.
        names: every label of the source with its class's name, empty where it has none.
    """

    basis: Basis = "none"
    names: Mapping[int, str] = field(default_factory=dict)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts class_2 before class_10, as timm does; names that differ in case only keep one order."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def place_labels(
    labels: NDArray[np.int64], labelling: Labelling, spec: ProgramSpec, source: object
) -> tuple[NDArray[np.int64], str]:
    """Labels `[n]` of a source as places among the model's classes, -1 where there is none, and a line for people.

    Names decide where every class of the source is called like one of the model's (in any case, with spaces,
    underscores or hyphens). Otherwise labels that are given are the model's class numbers; so are folders called by
    numbers that count from 0; and as many named folders as the model has classes are those in natural order. The line
    is empty where the labels given are the class numbers, as they should be.

    Raises:
        ImagesError: what the labels mean cannot be told, or they are no classes of the model.
    """
    match labelling.basis:
        case "order":
            placed, how = _by_order(labelling, spec, source)
        case "number":
            placed, how = _by_number(labelling, spec, source)
        case _:
            placed, how = _as_given(labelling, spec, source)
    unknown = sorted(set(labels.tolist()) - set(placed) - {UNLABELLED})
    if unknown:
        raise ImagesError(
            f"{source} has labels that are no classes of the model: got {_some(unknown)}; {spec.name} has "
            f"{_classes(spec)}. Give images of these classes, under the numbers or names that the model has for them"
        )
    return np.array([placed.get(label, UNLABELLED) for label in labels.tolist()], dtype=np.int64), how


def chance_warning(top1: float, images: int, classes: int) -> str:
    """A warning where a model's own top-1 is hardly better than chance; empty where it is, or `images` are few."""
    chance = 1 / max(classes, 1)
    if classes < 2 or images < CHANCE_IMAGES or top1 > chance + min(chance, 0.1):
        return ""
    return (
        f"warning: the float model's own top-1 is {top1:.1%} on {images} images of {classes} classes, near chance "
        f"({chance:.1%}): check that the images' labels are the model's classes, and that images are prepared as in "
        "its training (mean, std, crop)"
    )


def _as_given(labelling: Labelling, spec: ProgramSpec, source: object) -> tuple[Placed, str]:
    numbers = {n: place for place, n in enumerate(spec.class_numbers)}
    named = {label: name for label, name in labelling.names.items() if name}
    found = _match(named, spec)
    elsewhere = {label: place for label, place in found.items() if place != numbers.get(label)}
    if not elsewhere:
        return numbers, ""
    if len(found) == len(labelling.names) and len(set(found.values())) == len(found):
        return found, f"{source}: its {len(found)} classes are matched to the model's by name, not by number"
    label, place = next(iter(elsewhere.items()))
    example = f"its label {label} is {named[label]!r}, which is class {spec.class_numbers[place]} of {spec.name}"
    if set(labelling.names) <= numbers.keys() and len(found) > 2 * len(elsewhere):
        others = f"{len(elsewhere)} of {len(found)} class names that both know say otherwise"
        return numbers, f"warning: {source}: labels are taken as class numbers, but {others}: {example}"
    lost = [name for label, name in named.items() if label not in found]
    unknown = f", and names the model does not have: {_some(lost)}" if lost else ""
    raise ImagesError(
        f"{source} contradicts the model: {example}{unknown}. Correct its labels or the names, or leave the names out"
    )


def _by_number(labelling: Labelling, spec: ProgramSpec, source: object) -> tuple[Placed, str]:
    numbers = {n: place for place, n in enumerate(spec.class_numbers)}
    have = sorted(labelling.names)
    found = _match({n: str(n) for n in have}, spec)
    if len(found) == len(have):
        return found, f"{source}: its {len(have)} class folders are matched to the model's classes by name"
    elsewhere = [n for n in have if n in found and found[n] != numbers.get(n)]
    counted = 0 in labelling.names or CLASS_NUMBERS in spec.origin
    if counted and not elsewhere:
        return numbers, f"{source}: the names of its {len(have)} class folders are taken as class numbers"
    doubt = ""
    if elsewhere:
        doubt = f"; {elsewhere[0]} is the name of class {spec.class_numbers[found[elsewhere[0]]]}"
    elif not counted and have[-1] <= len(numbers):
        doubt = "; whether they count from 0 or from 1 cannot be told"
    raise ImagesError(
        f"{source} has class folders called by the numbers {_some(have)}, but {spec.name} has {_classes(spec)}{doubt}. "
        f"To be sure, {REMEDY}; or build with --labels and a text file of the folders' names in the order of the "
        "model's classes"
    )


def _by_order(labelling: Labelling, spec: ProgramSpec, source: object) -> tuple[Placed, str]:
    have = labelling.names
    found = _match(have, spec)
    if len(found) == len(have):
        return found, f"{source}: its {len(have)} class folders are matched to the model's classes by name"
    lost = [name for label, name in have.items() if label not in found]
    if found:
        raise ImagesError(
            f"{source}: {len(found)} of {len(have)} class folders are called like classes of {spec.name}, the others "
            f"are not: {_some(lost)}. Rename these like the model's classes, such as {_some(spec.labels[:3])}, or "
            "leave them out"
        )
    why = "none is called like a class of the model" if spec.labels else "the model has no class names"
    if CLASS_NUMBERS in spec.origin or len(have) != spec.head.classes:
        raise ImagesError(
            f"{source} has {len(have)} class folders ({_some(list(have.values()), 3)}), but {spec.name} has "
            f"{_classes(spec)}, and {why}, so which is which cannot be told. Give all classes' folders, {REMEDY}, or "
            "build with --labels and the classes' names"
        )
    first, last = have[0], have[len(have) - 1]
    return {label: label for label in have}, (
        f"{source}: {why}; its {len(have)} class folders are taken as the classes in natural order, {first} as class "
        f"0 to {last} as class {len(have) - 1}"
    )


def _match(names: Mapping[int, str], spec: ProgramSpec) -> dict[int, int]:
    """Return the place of each name among the model's labels, left out where there is none or several."""
    numbers = {n: place for place, n in enumerate(spec.class_numbers)}
    keys = [[_key(label), *(_key(part) for part in label.split(",") if "," in label)] for label in spec.labels]
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for place, (first, *others) in enumerate(keys):
        whole.setdefault(first, []).append(place)
        for other in others:
            parts.setdefault(other, []).append(place)
    found = {}
    for label, name in names.items():
        own, key = numbers.get(label), _key(name)
        if own is not None and own < len(keys) and key in keys[own]:
            found[label] = own  # two classes may share a name: ImageNet has two cranes
            continue
        places = (whole.get(key) or parts.get(key) or []) if key else []
        if len(places) == 1:
            found[label] = places[0]
    return found


def _key(name: str) -> str:
    """Return what of a name counts; a number counts without leading zeros."""
    text = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold())).strip()
    return str(int(text)) if text.isdecimal() and len(text) < 10 else text


def _classes(spec: ProgramSpec) -> str:
    numbers = spec.class_numbers
    known = f"0 to {len(numbers) - 1}" if numbers == tuple(range(len(numbers))) else _some(numbers, 20)
    return f"{len(numbers)} classes ({known})"


def _some(values: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
