"""What a model's own files do not state: what is assumed instead, and said; never guessed from a number."""

from __future__ import annotations

from dataclasses import replace

from edgevit.frontends.imagenet import imagenet_names, named_subset
from edgevit.program.program import Program
from edgevit.program.spec import ImageSpec, ProgramSpec
from edgevit.util.progress import Say

NOTES = "notes"  # key of an origin: what was chosen, assumed or left out when the weights were read


def say_assumed(image: ImageSpec, label: str, say: Say) -> None:
    """Tell that the preprocessing is that of `label`, for weights that state none."""
    say(
        f"preprocessing assumed of {label}, as the weights do not state it: mean {_numbers(image.mean)}, std "
        f"{_numbers(image.std)}, crop {image.crop_pct:g} ({image.crop_mode}), {image.interpolation}; if yours were "
        "trained otherwise, say so with --mean, --std, --crop, --crop-mode, --interpolation"
    )


def with_statements(program: Program, *, license: str | None, credit: str | None) -> Program:
    """The Program with the licence and the credit of its weights that the user stated, in place of what it held."""
    stated = {key: value for key, value in (("license", license), ("credit", credit)) if value is not None}
    if not stated:
        return program
    return program.with_weights({}, replace(program.spec, origin=program.spec.origin | stated))


def class_names(spec: ProgramSpec, stated: tuple[str, ...], tag: str, say: Say) -> tuple[str, ...]:
    """The names of a model's classes: those that its files state, or ImageNet's where the user named a tag of them.

    A thousand classes alone may be anybody's: then there are no names, and `say` is told how to give ImageNet's.
    """
    if not spec.head.linear:
        return ()
    if len(stated) == spec.head.classes:
        return stated
    subset = named_subset(tag, spec.head.classes)
    if subset is not None:
        say(f"class names are those of {subset}, as the tag {tag!r} says")
        return imagenet_names(subset)
    if spec.head.classes == 1000:
        say("the weights name no classes; if they are ImageNet's thousand, pass --labels imagenet-1k")
    return ()


def _numbers(values: tuple[float, ...]) -> str:
    """Format three numbers, or one where they are equal."""
    return " ".join(f"{v:.4g}" for v in (values[:1] if len(set(values)) == 1 else values))
