"""Another model as the counterpart of a Program: on its images, with its class numbers."""

from __future__ import annotations

from dataclasses import replace

from edgevit.errors import ProgramError
from edgevit.program.program import Program
from edgevit.tasks.classes import keep_classes


def fitting(original: Program, program: Program) -> Program:
    """Return the original as it answers the Program's images with the Program's class numbers.

    Raises:
        ProgramError: other image size, or classes that it does not have.
    """
    ours, theirs = program.spec, original.spec
    sizes = [(spec.image.height, spec.image.width) for spec in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise ProgramError(
            f"--original {theirs.name} takes images of {sizes[1][0]} x {sizes[1][1]} pixels, {ours.name} of "
            f"{sizes[0][0]} x {sizes[0][1]}; give the model that it was compressed from, at its size"
        )
    if ours.class_numbers != theirs.class_numbers:
        missing = sorted(set(ours.class_numbers) - set(theirs.class_numbers))
        if missing or not theirs.head.linear:
            raise ProgramError(
                f"--original {theirs.name} has {theirs.head.classes} classes, {ours.name} has {ours.head.classes}, "
                f"among them {missing[:5]} that it lacks; give the model that it was compressed from"
            )
        original = keep_classes(original, ours.class_numbers)
    image = replace(ours.image, mean=theirs.image.mean, std=theirs.image.std)
    return original.with_weights({}, replace(original.spec, image=image))
