"""timm's plain pre-norm Vision Transformers to `Program`: published, random, or with a user's own weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevit.errors import UnsupportedModelError, WeightsError
from edgevit.frontends.imagenet import imagenet_names, named_subset
from edgevit.frontends.own_weights import own_program
from edgevit.frontends.refusal import refusal
from edgevit.frontends.timm_import import timm
from edgevit.frontends.timm_module import SEED, check_name, create, meta_model, program_from_module, random_model
from edgevit.program.program import Program
from edgevit.util.progress import Say


def from_timm(
    name: str,
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool | None = None,
    say: Say = lambda _: None,
) -> Program:
    """Return a timm model as a Program: weights from a file, from timm's hub, or random with a fixed seed.

    Args:
        name: timm's name, with or without its tag (`deit_tiny_patch16_224.fb_in1k`).
        weights: a checkpoint (see `own_program`); it decides classes, image size and pooling unless they are given.
        pretrained: fetch timm's weights when no file is given.
        classes: length of the output, 0 for the pooled row; another number than the weights have starts a new head
            with `pretrained`, and is an error with `weights`.
        image_size: height and width; the position embedding is resampled as timm does when it differs.
        ema: of a checkpoint, the averaged weights (True) or the plain ones (False).
        say: told what was chosen, assumed or left out of a checkpoint.

    Raises:
        UnknownModelError: timm has no such name.
        UnsupportedModelError: the model does not fit, with the reason.
        WeightsError: the weights cannot be read or fetched, or do not fit the model.
    """
    if weights is not None:
        return own_program(name, weights, classes=classes, image_size=image_size, ema=ema, say=say)
    check_name(name)
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    reason = refusal(meta_model(name, options))
    if reason is not None:
        raise UnsupportedModelError(
            f"timm model {name!r} is not supported: {reason}; `edgevit models` lists what is supported"
        )
    if classes is not None and classes < 0:
        raise UnsupportedModelError(f"{name} needs 0 classes (the pooled row) or more, got {classes}")
    if classes is not None:
        options["num_classes"] = classes
    origin = {"source": "timm", "source_version": timm.__version__, "weights": "timm" if pretrained else "random"}
    model: Any = _pretrained_model(name, options) if pretrained else random_model(name, options)
    program = program_from_module(model, name, origin=origin, published=pretrained)
    return _with_class_names(program, dict(model.pretrained_cfg)) if pretrained else program


def _pretrained_model(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return create(name, pretrained=True, **options)
    except Exception as error:  # network, hub and cache faults have no common class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"cannot fetch the pretrained weights of {name!r} ({first}); "
            "check the network, or pass --weights with a file that is already here"
        ) from error


def _with_class_names(program: Program, config: dict[str, Any]) -> Program:
    """The Program of published weights with the names of ImageNet's classes, where the tag says that they are these."""
    subset = named_subset(str(config.get("tag") or ""), program.spec.head.classes if program.spec.head.linear else 0)
    if subset is None:
        return program
    return program.with_weights({}, replace(program.spec, labels=imagenet_names(subset)))
