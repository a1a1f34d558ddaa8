"""Find the model that a bundle is timed against: the one that is named, or its original's shapes by their name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgevit.backends import DEFAULT
from edgevit.build import baselines
from edgevit.errors import EdgevitError, ProgramError
from edgevit.frontends.catalogue import read_catalogue
from edgevit.frontends.resolve import resolve
from edgevit.program.program import Program
from edgevit.schema.manifest import Bundle, Manifest
from edgevit.util.progress import say

NONE = "none"
FLOAT = "dense float"
Against = Program | str | Path

Prepare = Callable[[Bundle, Path], Sequence[dict[str, Any]]]


def prepare(against: Against | None, weights: Path | None) -> Prepare | None:
    """Return what writes the baselines of a bundle into a folder; None where none are wanted.

    Raises:
        ProgramError: weights without the model that they are of.
    """
    if weights is not None and (against is None or isinstance(against, Program)):
        raise ProgramError("--against-weights is the checkpoint of the model that --against names; give both")
    if isinstance(against, str) and against == NONE:
        return None
    return partial(_prepared, against=against, weights=weights)


def _prepared(
    bundle: Bundle, folder: Path, *, against: Against | None, weights: Path | None
) -> Sequence[dict[str, Any]]:
    """Write them.

    Raises:
        ProgramError: the model that was named takes images of another size.
        EdgevitError: it cannot be found or read.
    """
    manifest = bundle.manifest
    size = (manifest.input.preprocessing.height, manifest.input.preprocessing.width)
    if against is None:
        try:
            program = _by_name(manifest, size)
        except EdgevitError as error:
            return [_missing(str(error))]
        if program is None:
            return [_missing("the original is not at hand; name it with --against")]
    elif isinstance(against, Program):
        program = against
    else:
        program = resolve(str(against), weights=weights, say=say)
    image = program.spec.image
    if (image.height, image.width) != size:
        raise ProgramError(
            f"{program.spec.name} takes images of {image.height} x {image.width}, the bundle of {size[0]} x {size[1]}; "
            "name a model of the same size"
        )
    say(f"timing {program.spec.name} in float beside the bundle")
    return baselines.prepare(program, folder)


def _by_name(manifest: Manifest, size: tuple[int, int]) -> Program | None:
    """Return the original's shapes with random weights, which take as long; None where its name is not known."""
    name = manifest.original.name if manifest.original is not None else manifest.recipe.model
    stem = name.partition(".")[0]
    installed = all(importlib.util.find_spec(package) for package in ("torch", "timm"))
    if not installed or not any(
        entry.name.partition(".")[0] == stem and entry.fits for entry in read_catalogue().models
    ):
        return None
    from edgevit.frontends.from_timm import from_timm

    classes = next(output.shape[-1] for output in manifest.outputs if output.name == "logits")
    return from_timm(stem, classes=classes, image_size=size)


def _missing(why: str) -> dict[str, Any]:
    return {"name": FLOAT, "runtime": DEFAULT, "kind": "", "why": why}
