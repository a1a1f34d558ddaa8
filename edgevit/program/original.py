"""The original of a compressed Program: what is kept of it, what it answered, and what of that still holds."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from edgevit.program.macs import total_macs
from edgevit.program.pixels import pixels_digest
from edgevit.program.program import Program, expected_shapes
from edgevit.program.spec import ImageSpec, OriginalEvaluation, OriginalSpec, ProgramSpec
from edgevit.util import strict_json

UNKNOWN = "not known on these images"


def weights_digest(program: Program) -> str:
    """Return the sha256 over names, shapes and values of a Program's arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(program.weights.items()):
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def original_of(program: Program, *steps: str) -> OriginalSpec:
    """Return what to keep of `program` before `steps` are done to it: itself, or the original that it has already.

    What the Program was compared on before does not hold after a step; what its original answered does.
    """
    spec, known = program.spec, program.spec.original
    if known is not None:
        answers = tuple(replace(e, agreement=None, top1=None) for e in known.evaluations if e.answers)
        return replace(known, steps=(*known.steps, *steps), evaluations=answers)
    itself = as_original(program)
    if not spec.compressed:
        return replace(itself, steps=steps)
    # An older edgevit compressed it and did not say from which weights; its size is known all the same.
    whole = uncompressed(spec)
    return replace(itself, weights_sha256="", macs=total_macs(whole), parameters=parameters(whole), steps=steps)


def as_original(program: Program) -> OriginalSpec:
    """Return what is kept of `program` where it is the original itself."""
    head = program.weights.get("head.weight")
    return OriginalSpec(
        name=program.spec.name,
        weights_sha256=weights_digest(program),
        macs=total_macs(program.spec),
        parameters=parameters(program.spec),
        new_head=head is not None and not head.any(),
    )


def parameters(spec: ProgramSpec) -> int:
    """Return how many numbers a Program of this spec holds."""
    return sum(int(np.prod(shape)) for shape in expected_shapes(spec).values())


def uncompressed(spec: ProgramSpec) -> ProgramSpec:
    """Return the spec of the model that a Program was compressed from: all units and tokens, no gates, no skip rows."""
    branches = tuple(replace(b, kept=tuple(range(b.units_total)), gate=None, skip=False) for b in spec.branches)
    return replace(spec, branches=branches, merges=(), original=None)


def input_digest(images: np.ndarray, image: ImageSpec) -> str:
    """sha256 over what a network is given: pixels, whatever their labels and names, and how it scales them."""
    scaling = strict_json.to_data([image.mean, image.std])
    return hashlib.sha256(f"{pixels_digest(images)} {scaling}".encode()).hexdigest()


def evaluate(
    source: str,
    images: np.ndarray,
    image: ImageSpec,
    original: np.ndarray,
    compressed: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> OriginalEvaluation:
    """Return what is kept of the original's logits on images, and of the Program's where they are given.

    Args:
        source: name of the set.
        images: uint8 `[n, height, width, 3]`.
        image: the Program's.
        original: the original's logits, `[n, classes]`.
        compressed: the Program's in float, the same shape.
        labels: class numbers `[n]`, negative for an image without one.
    """
    named = original.argmax(axis=1)
    ours = None if compressed is None else compressed.argmax(axis=1)
    known = np.zeros(len(named), bool) if labels is None else np.asarray(labels) >= 0
    return OriginalEvaluation(
        source=source,
        images=len(images),
        classes=original.shape[1],
        input_sha256=input_digest(images, image),
        answers=" ".join(map(str, named)),
        logits_sha256=hashlib.sha256(np.ascontiguousarray(original, dtype="<f4").tobytes()).hexdigest(),
        agreement=None if ours is None else float((ours == named).mean()),
        original_top1=float((named == labels)[known].mean()) if known.any() else None,
        top1=float((ours == labels)[known].mean()) if known.any() and ours is not None else None,
    )


def with_original(program: Program, original: OriginalSpec, *evaluations: OriginalEvaluation) -> Program:
    """The Program with its original, and what both said on some images; an earlier word on the same images goes."""
    again = {e.input_sha256 for e in evaluations}
    kept = tuple(e for e in original.evaluations if e.input_sha256 not in again)
    original = replace(original, evaluations=(*kept, *evaluations))
    return program.with_weights({}, replace(program.spec, original=original))


def with_classes(original: OriginalSpec, before: ProgramSpec, after: ProgramSpec) -> OriginalSpec:
    """Return the original of a Program that keeps some classes: the original with these classes.

    What both said with all classes stays as a figure; the classes that were named are no longer the Program's numbers.
    """
    specs = [uncompressed(spec) for spec in (before, after)]
    return replace(
        original,
        macs=original.macs - total_macs(specs[0]) + total_macs(specs[1]),
        parameters=original.parameters - parameters(specs[0]) + parameters(specs[1]),
        evaluations=tuple(replace(e, answers="", input_sha256="") for e in original.evaluations),
    )


def kept_answers(spec: ProgramSpec, images: np.ndarray) -> np.ndarray | None:
    """Return the class that the original named for every image, int64 `[n]`; None where these images are not kept."""
    evaluations = spec.original.evaluations if spec.original else ()
    digest = input_digest(images, spec.image) if evaluations else ""
    for kept in evaluations:
        if kept.answers and kept.input_sha256 == digest and kept.classes == spec.head.classes:
            return np.array(kept.answers.split(), dtype=np.int64)
    return None


def without_answers(original: OriginalSpec | None) -> OriginalSpec | None:
    """Return the original without the class of every image, which a manifest has no use for."""
    if original is None:
        return None
    return replace(original, evaluations=tuple(replace(e, answers="") for e in original.evaluations))


def told(original: OriginalSpec | None, classes: int) -> str:
    """Why an original did not answer the images, and what is known of it; `classes` is how many the Program has."""
    if original is None:
        return f"{UNKNOWN}: this Program does not keep it; --original MODEL compares here"
    if original.new_head:
        return "not comparable: its classifier was trained anew, with the compression"
    when = when_compressed(original, classes)
    return f"{UNKNOWN}{'; ' if when else ''}{when}; --original MODEL compares here"


def best_known(original: OriginalSpec | None, *, labelled: bool = False) -> OriginalEvaluation | None:
    """Return the evaluation that says most: on labelled images if there is one, or only then, and on most images."""
    everything = original.evaluations if original else ()
    found = [e for e in everything if e.top1 is not None and e.original_top1 is not None]
    if not found and not labelled:
        found = [e for e in everything if e.agreement is not None]
    return max(found, key=lambda e: e.images, default=None)


def when_compressed(original: OriginalSpec | None, classes: int, *, labelled: bool = False) -> str:
    """What original and Program said when it was compressed, in words; with `labelled` only where top-1 is known."""
    best = best_known(original, labelled=labelled)
    if best is None:
        return ""
    figures = []
    if best.top1 is not None and best.original_top1 is not None:
        figures.append(f"top-1 {100 * best.original_top1:.1f} -> {100 * best.top1:.1f} %")
    if best.agreement is not None:
        figures.append(f"agreement {100 * best.agreement:.1f} %")
    among = "" if best.classes == classes else f" with all {best.classes} classes"
    return f"when it was compressed: {', '.join(figures)} on {best.images} images of {best.source}{among}"
