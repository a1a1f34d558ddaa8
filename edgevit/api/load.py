"""Find a model by name, checkpoint or folder, and write it as a Program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import edgevit.report.notebook  # noqa: F401  a notebook shows Programs from now on
from edgevit.errors import ImagesError
from edgevit.frontends.imagenet import SUBSETS, imagenet_names
from edgevit.frontends.preprocessing import Preprocessing, with_preprocessing
from edgevit.frontends.resolve import resolve
from edgevit.frontends.stated import with_statements
from edgevit.program.program import Program, Storage, save_program
from edgevit.tasks.classes import keep_classes, read_classes
from edgevit.util.progress import say
from edgevit.util.text import read_lines

__all__ = ["DEFAULT_PROGRAM", "Preprocessing", "Program", "load", "load_kept", "save"]

DEFAULT_PROGRAM = "vit_tiny_gated"


def load(
    model: str | Path = DEFAULT_PROGRAM,
    *,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool | None = None,
    preprocessing: Preprocessing | None = None,
    labels: str | Path | None = None,
    classes: str | Sequence[int] | None = None,
    license: str | None = None,
    credit: str | None = None,
) -> Program:
    """Return the Program that a model's name or folder means. Only named models and checkpoints need torch.

    Args:
        model: a Program folder, a folder of Hugging Face's hub, a name that `models()` lists, or the name of a Program
            that ships (default: the demo's).
        weights: checkpoint of a named model, a file or hub folder; without it timm's pretrained weights are fetched.
        image_size: height and width in pixels, multiples of the patch size (default: those of the weights).
        ema: of a checkpoint with both, the averaged weights (True) or the plain ones (False).
        preprocessing: how images are prepared, where it is not as the name or the checkpoint says.
        labels: class names, a text file with one per line, or "imagenet-1k".
        classes: keep only these of the model's classes: numbers, or a text of numbers or names with commas.
        license: licence of the weights, as a bundle is to state it.
        credit: who made the weights, as a bundle is to state it.

    Raises:
        UnknownModelError: nothing is called so; the nearest names are offered.
        UnsupportedModelError: the model is no plain ViT; says why.
        WeightsError: weights are missing, unreadable or do not fit.
        ProgramError: the folder is no Program, or was given options that a Program cannot take.
        ImagesError: labels or classes do not fit the model.

    Example:
        >>> program = edgevit.load("vit_tiny_gated")
        >>> program.spec.name, program.spec.image.height, program.spec.head.classes
        ('vit_tiny_patch16_224', 224, 1000)
    """
    return load_kept(
        model,
        weights=weights,
        image_size=image_size,
        ema=ema,
        preprocessing=preprocessing,
        labels=labels,
        classes=classes,
        license=license,
        credit=credit,
    )[0]


def load_kept(
    model: str | Path | Program,
    *,
    weights: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool | None = None,
    preprocessing: Preprocessing | None = None,
    labels: str | Path | None = None,
    classes: str | Sequence[int] | None = None,
    license: str | None = None,
    credit: str | None = None,
) -> tuple[Program, tuple[int, ...]]:
    """Return the same Program as `load`, and the numbers of the classes that were kept (empty: all)."""
    if isinstance(model, Program):
        found = model
    else:
        name = str(model)
        found = resolve(name, weights=_path(weights), image_size=image_size, ema=ema, say=say)
        found = with_preprocessing(found, name, preprocessing or Preprocessing())
    named = _labelled(with_statements(found, license=license, credit=credit), _path(labels))
    if classes is None:
        return named, ()
    kept = read_classes(classes if isinstance(classes, str) else ",".join(map(str, classes)), named.spec)
    return keep_classes(named, kept), kept


def save(program: Program, folder: str | Path, *, storage: Storage = "float32", force: bool = False) -> Path:
    """Write a Program as a folder, which `load` and every command take, and return its path.

    Args:
        program: what to write.
        folder: where; an interrupted save leaves what was there.
        storage: type of the stored weights, "float32" or "float16" (half the bytes, rounded).
        force: replace a Program that is there.

    Raises:
        OutputError: something is there that is not to be replaced, or the disk refuses.

    Example:
        >>> edgevit.save(program, "out/program")
        PosixPath('out/program')
        >>> edgevit.load("out/program").spec == program.spec
        True
    """
    save_program(program, Path(folder), storage=storage, force=force)
    return Path(folder)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _labelled(program: Program, path: Path | None) -> Program:
    """Return the Program with the class names of a text file, one per line."""
    if path is None:
        return program
    if str(path) in SUBSETS and not path.exists():
        return _named(program, path, imagenet_names(str(path)))
    try:
        names = read_lines(path)
    except (OSError, ValueError) as error:
        raise ImagesError(
            f"{path} cannot be read as class names ({error}); give a text file, one name per line"
        ) from error
    return _named(program, path, names)


def _named(program: Program, path: Path, names: tuple[str, ...]) -> Program:
    if len(names) != program.spec.head.classes:
        raise ImagesError(
            f"{path} holds {len(names)} class names, but {program.spec.name} has {program.spec.head.classes} classes; "
            "give one name per line, in the order of the model's classes"
        )
    return program.with_weights({}, replace(program.spec, labels=names))
