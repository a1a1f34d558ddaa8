"""What a user says about the images of an own model, in place of what its name stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevit.errors import ImagesError, ProgramError
from edgevit.frontends.resolve import shipped_programs
from edgevit.program.program import Program, is_program
from edgevit.program.spec import CropMode, Orientation

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Fields of `ImageSpec` to replace; None keeps the model's own. `crop` is its `crop_pct`."""

    mean: Colour | None = None
    std: Colour | None = None
    crop: float | None = None
    crop_mode: CropMode | None = None
    interpolation: str | None = None
    orientation: Orientation | None = None

    def given(self) -> dict[str, Any]:
        """Return what is not None, by the option's name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def with_preprocessing(program: Program, model: str, wanted: Preprocessing) -> Program:
    """Return the Program that `model` named, with images prepared as the user says.

    Raises:
        ProgramError: `model` is a Program, which knows how its images are prepared.
        ImagesError: a mean or deviation that cannot be of pixels scaled to 0..1.
    """
    given = wanted.given()
    if not given:
        return program
    if model in shipped_programs() or is_program(Path(model)):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ProgramError(
            f"{model} is a Program, which knows how its images are prepared; omit {options}, or give the model's "
            "name with --weights"
        )
    for name, low in (("mean", 0.0), ("std", 1e-3)):
        colour = given.get(name, (low,) * 3)
        if not all(low <= value <= 1 for value in colour):
            scaled = ",".join(f"{value / 255:.4g}" for value in colour)
            hint = f"; these look like pixels of 0..255: scaled they are {scaled}" if max(colour) > 1 else ""
            got = ",".join(f"{value:g}" for value in colour)
            raise ImagesError(f"--{name} is {got}; allowed: {low:g} to 1, of pixels scaled to 0..1{hint}")
    if "crop" in given:
        given["crop_pct"] = given.pop("crop")
    return program.with_weights({}, replace(program.spec, image=replace(program.spec.image, **given)))
