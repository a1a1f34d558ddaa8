"""Fewer classes: the rows of a classifier that a device has a use for, under the numbers that its data knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgevit.errors import ImagesError
from edgevit.program.original import with_classes
from edgevit.program.program import Program
from edgevit.program.spec import CLASS_NUMBERS, ProgramSpec
from edgevit.util.text import read_text

MOST_DIGITS = 9  # of a class number


def read_classes(text: str, spec: ProgramSpec) -> tuple[int, ...]:
    """Return class numbers of `text`: numbers or names of the model's classes, separated by commas, or a file of lines.

    Raises:
        ImagesError: the model has no classifier, the file cannot be read, or something is no class of it, or twice.
    """
    if not spec.head.linear:
        raise ImagesError(f"--classes: {spec.name} ends without a classifier; omit --classes")
    items = [item.strip() for item in _items(text)]
    names = {name.casefold(): number for name, number in zip(spec.labels, spec.class_numbers, strict=False) if name}
    known = set(spec.class_numbers)
    found = [_number(item) if item.isdecimal() else names.get(item.casefold(), -1) for item in items if item]
    wrong = [item for item, number in zip(filter(None, items), found, strict=True) if number not in known]
    twice = sorted(n for n, count in Counter(found).items() if count > 1 and n in known)
    if wrong or twice or not found:
        named = "or its classes' names" if names else "and this model has no class names; pass --labels"
        got = (
            f"got {', '.join(repr(w[:80]) for w in wrong[:5])}"
            if wrong
            else f"got {twice[:5]} twice"
            if twice
            else "got none"
        )
        raise ImagesError(
            f"--classes: {got}; allowed: class numbers of {spec.name}, {min(known)} to {max(known)}, {named}, "
            "separated by commas, or a text file with one per line"
        )
    return tuple(found)


def keep_classes(program: Program, numbers: Sequence[int]) -> Program:
    """The Program with only the classes `numbers` of its own, in that order; what it knows of them does not change.

    Classes without a name are called by their number, which the data's labels keep.
    """
    spec = program.spec
    places = [spec.class_numbers.index(number) for number in numbers]
    labels = tuple((spec.labels[p] if spec.labels else "") or str(n) for p, n in zip(places, numbers, strict=True))
    kept = {name: program.weights[name][..., places].copy() for name in ("head.weight", "head.bias")}
    head = replace(spec.head, classes=len(places))
    origin = spec.origin | {CLASS_NUMBERS: " ".join(map(str, numbers))}
    fewer = replace(spec, head=head, labels=labels, origin=origin)
    if spec.original is not None:
        fewer = replace(fewer, original=with_classes(spec.original, spec, fewer))
    return program.with_weights(kept, fewer)


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= MOST_DIGITS else -1


def _items(text: str) -> list[str]:
    path = Path(text)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a name: a list
        there = False
    try:
        if there:
            return read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise ImagesError(f"{path} cannot be read as classes ({error}); give a text file, one per line") from error
    return text.split(",")
