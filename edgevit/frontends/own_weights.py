"""A user's own weights as a Program: under a name of timm's, or as the folder they come in states.

What a name stands for besides its architecture (mean and std, class names, licence) is known of the weights that timm
publishes, not of a user's: mean and std are then assumed and said, the rest is not stated.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgevit.errors import EdgevitError, UnsupportedModelError, WeightsError
from edgevit.frontends import transformers_models
from edgevit.frontends.checkpoint import describe_file, load_checkpoint
from edgevit.frontends.fit import Create, fit, timm_forms
from edgevit.frontends.hub_folder import HubFolder, read_hub
from edgevit.frontends.naming import shorten
from edgevit.frontends.stated import NOTES, class_names, say_assumed
from edgevit.frontends.timm_import import timm
from edgevit.frontends.timm_module import (
    check_name,
    image_spec,
    meta_model,
    program_from_module,
    program_spec,
    random_model,
)
from edgevit.program.program import Program
from edgevit.program.spec import ImageSpec, ProgramSpec
from edgevit.util.progress import Say


def own_program(
    name: str | None,
    weights: Path,
    *,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool | None = None,
    say: Say = lambda _: None,
) -> Program:
    """Return the Program of the weights at `weights`: a file, an index of shards, or a folder of Hugging Face's hub.

    Args:
        name: timm's name; None: the folder's config.json says which model it is. With both, they must agree.
        weights: where the weights are.
        classes: length of the output; None: as the weights have it.
        image_size: height and width; None: as the weights (or the folder's preprocessing, for DINOv2) have it.
        ema: averaged weights (True) or plain ones (False); None: those that the source itself judges.
        say: told whatever was chosen, assumed or left out; the Program's origin keeps these lines too.

    Raises:
        UnknownModelError, UnsupportedModelError, WeightsError: see `from_timm`.
    """
    if name is not None:
        check_name(name)
    if classes is not None and classes < 0:
        raise UnsupportedModelError(f"{name or weights} needs 0 classes (the pooled row) or more, got {classes}")
    notes: list[str] = []

    def tell(line: str) -> None:
        notes.append(line)
        say(line)

    state = load_checkpoint(weights, ema=ema, say=tell)
    hub = _stated(weights, name, tell)
    if name is None and hub is None:
        raise WeightsError(f"{weights} states no model (it holds no config.json); name one that `edgevit models` lists")
    of = _of_timm if hub is None or hub.kind == "timm" else _of_transformers
    program = of(hub, state, name, image_size, classes=classes, say=tell)
    origin = program.spec.origin | describe_file(weights) | ({NOTES: "; ".join(notes)} if notes else {})
    return program.with_weights({}, replace(program.spec, origin=origin))


def _stated(weights: Path, name: str | None, say: Say) -> HubFolder | None:
    """Return what the folder states; of one around a single file, whose model is named, only if it is of that model."""
    try:
        hub = read_hub(weights)
    except EdgevitError as error:
        if weights.is_dir() or name is None:
            raise
        say(f"warning: config.json beside {weights.name} was not read: {error}")
        return None
    if hub is None:
        return None
    other = hub.kind == "timm" and name is not None and name.partition(".")[0] != hub.architecture
    if other and not weights.is_dir():
        say(f"warning: config.json beside {weights.name} was not read: it is of {hub.architecture}, not {name}")
        return None
    say(f"model, preprocessing and class names are those that config.json of {hub.name} states")
    return hub


def _of_timm(
    hub: HubFolder | None,
    state: Mapping[str, Tensor],
    name: str | None,
    image_size: tuple[int, int] | None,
    *,
    classes: int | None,
    say: Say,
) -> Program:
    """Return weights of timm's modules: under `name`, or under the architecture that the folder states."""
    if hub is not None and name is not None and name.partition(".")[0] != hub.architecture:
        raise WeightsError(f"config.json beside the weights says {hub.architecture}, not {name}; omit the name")
    label = name or (hub.architecture if hub is not None else "")
    check_name(label)
    stated = dict(hub.config.get("model_args") or {}) if hub is not None else {}
    # timm's create_model takes more, such as a checkpoint to load; none of that is a statement about the model.
    known = inspect.signature(timm.models.VisionTransformer.__init__).parameters
    if strange := sorted(stated.keys() - known.keys()):
        raise UnsupportedModelError(f"config.json beside the weights states what no ViT has: {shorten(strange)}")

    def create(options: dict[str, Any], meta: bool) -> nn.Module:
        build = meta_model if meta else random_model
        return build(label, {**stated, **options})

    model: Any = fit(state, create, f"timm model {label!r}", classes=classes, image_size=image_size, say=say)
    origin = {"source": "timm", "source_version": timm.__version__}
    program = program_from_module(model, label, origin=origin)
    if hub is not None:
        image = image_spec(hub.config["pretrained_cfg"], program.spec.image.height, program.spec.image.width)
        return _with(program, image, class_names(program.spec, hub.labels, "", say), hub.license)
    config = model.pretrained_cfg
    image, tag = program.spec.image, str(config.get("tag") or "")
    say_assumed(image, f"{label.partition('.')[0]}{'.' * bool(tag)}{tag}", say)
    return _with(program, image, class_names(program.spec, (), label.partition(".")[2], say), "")


def _of_transformers(
    hub: HubFolder | None,
    state: Mapping[str, Tensor],
    name: str | None,
    image_size: tuple[int, int] | None,
    *,
    classes: int | None,
    say: Say,
) -> Program:
    """Return weights of transformers, built as their config.json says."""
    assert hub is not None and hub.preprocessing is not None  # of all kinds but timm's
    state = timm_forms(state, hub.name)
    if "dist_token" in state and "head_dist.weight" not in state:
        # DeiTForImageClassification: the distillation token takes part, and only the class token is read.
        state = {("reg_token" if n == "dist_token" else n): v for n, v in state.items()}
    create: Create = lambda options, meta: transformers_models.build(hub, state, options, meta=meta)  # noqa: E731
    stated, dino = hub.preprocessing, hub.kind.startswith("dinov2")
    if image_size is None and dino and not stated.assumed:
        image_size = stated.size
    model = fit(
        state,
        create,
        f"{hub.kind} {hub.name!r}",
        classes=classes,
        image_size=image_size,
        antialias=hub.kind != "dinov2",  # DINOv2 resamples to any input itself, without smoothing
        say=say,
    )
    program = program_from_module(model, hub.name, origin={"source": "transformers", "model": hub.name})
    spec = program.spec
    if image_size is None and not stated.assumed and stated.size != (spec.image.height, spec.image.width):
        raise WeightsError(
            f"preprocessor_config.json makes images of {stated.size[0]} x {stated.size[1]}, the weights are for "
            f"{spec.image.height} x {spec.image.width}; say with --image-size H,W which it is"
        )
    image = replace(
        spec.image,
        mean=stated.mean,
        std=stated.std,
        crop_pct=stated.crop_pct,
        interpolation=stated.interpolation,
        crop_mode=stated.crop_mode,
    )
    if stated.assumed:
        say_assumed(image, f"{hub.kind} as it was released (there is no preprocessor_config.json)", say)
    if name is not None:
        _check_same(spec, name)
    return _with(program, image, class_names(spec, hub.labels, "", say), hub.license)


def _with(program: Program, image: ImageSpec, labels: tuple[str, ...], licence: str) -> Program:
    origin = program.spec.origin | ({"license": licence} if licence else {})
    return program.with_weights({}, replace(program.spec, image=image, labels=labels, origin=origin))


def _check_same(spec: ProgramSpec, name: str) -> None:
    """Raise WeightsError unless the folder's model has the structure that `name` stands for."""
    other = program_spec(meta_model(name), name, {})

    def traits(s: ProgramSpec) -> dict[str, object]:
        mhsa, ffn = s.branches[0], s.branches[1]
        return {
            "width": s.dim,
            "blocks": len(s.branches) // 2,
            "patch": s.stem.patch,
            "prefix tokens": s.stem.prefix,
            "heads": mhsa.units,
            "neurons": ffn.units,
            "activation": ffn.activation,
            "norm behind the stem": s.stem.norm,
        }

    own, named = traits(spec), traits(other)
    wrong = [f"{key} {own[key]} instead of {named[key]}" for key in own if own[key] != named[key]]
    if wrong:
        raise WeightsError(f"config.json describes another model than {name}: {', '.join(wrong)}; omit the name")
