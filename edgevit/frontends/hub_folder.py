"""Folders in the form of Hugging Face's hub: weights (whole or in shards), config.json, preprocessor_config.json.

Read without torch. What the folder states about its model counts before what a name stands for: architecture,
preprocessing, class names, licence. Two kinds of config.json are known: transformers' and timm's own.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import UnsupportedModelError, WeightsError
from edgevit.program.spec import CropMode
from edgevit.util import limits, strict_json

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = ".index.json"
# transformers' model types that are plain pre-norm Vision Transformers, and those that hold one as their vision tower.
MODEL_TYPES = ("vit", "vit_msn", "vit_mae", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model", "clip")
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


# Sizes that a module would be built of before its weights are held against it, in transformers' names and timm's.
_SIZES: Mapping[str, limits.Limit] = {
    **dict.fromkeys(("num_hidden_layers", "depth"), limits.BRANCHES),
    **dict.fromkeys(("image_size", "img_size", "patch_size"), limits.IMAGE_SIDE),
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_channels"), limits.WIDTH),
    **dict.fromkeys(("embed_dim", "num_heads", "in_chans", "reg_tokens"), limits.WIDTH),
    "num_classes": limits.CLASSES,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a folder says of its input: as in `ImageSpec`, with the size `(height, width)` that comes out."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: str
    crop_mode: CropMode
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """A folder's statements.

    `kind` is `timm` or transformers' model type, `architecture` timm's name where it is timm's. `config` is that of
    the vision tower. `preprocessing` is None for timm's, whose `pretrained_cfg` states it.
    """

    name: str
    kind: str
    architecture: str
    config: Mapping[str, Any]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    license: str


# What each model type was released with, for a folder without preprocessor_config.json.
_RELEASED: Mapping[str, tuple[tuple[tuple[float, ...], tuple[float, ...]], float, str, CropMode]] = {
    "vit": (_HALF, 1.0, "bilinear", "squash"),
    "vit_msn": (_IMAGENET, 1.0, "bilinear", "squash"),
    "vit_mae": (_IMAGENET, 1.0, "bilinear", "squash"),
    "deit": (_IMAGENET, 224 / 256, "bicubic", "squash"),
    "dinov2": (_IMAGENET, 224 / 256, "bicubic", "center"),
    "dinov2_with_registers": (_IMAGENET, 224 / 256, "bicubic", "center"),
    "clip": (_CLIP, 1.0, "bicubic", "center"),
    "clip_vision_model": (_CLIP, 1.0, "bicubic", "center"),
}


def is_hub(folder: Path) -> bool:
    """Return whether a folder states which model it holds."""
    return (folder / "config.json").is_file()


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights: `path` itself, the shards of an index, or those of a folder.

    Raises:
        WeightsError: none there, several with nothing to choose by, or an index that names files outside its folder.
    """
    if path.is_dir():
        known = [path / name for name in WEIGHTS if (path / name).is_file()]
        others = [p for p in sorted(path.iterdir()) if p.suffix.lower() in (".safetensors", ".pth", ".pt", ".bin")]
        if not known and len(others) != 1:
            got = ", ".join(p.name for p in others) or "none"
            raise WeightsError(
                f"{path} holds no {WEIGHTS[0]} and not one other weights file (got {got}); name the file"
            )
        return weight_files(known[0] if known else others[0])
    if not path.name.endswith(INDEX):
        return (path,)
    table = _json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise WeightsError(f"{path} holds no weight_map; get the file again")
    names = sorted({str(name) for name in table.values()})
    outside = [name for name in names if Path(name).name != name]
    # os.path, as Path raises for a name that is too long.
    missing = [name for name in names if not os.path.isfile(path.parent / name)]  # noqa: PTH113
    if outside or missing:
        what = (
            f"names {strict_json.shown(outside[0])}, which is no file beside it"
            if outside
            else f"needs {', '.join(strict_json.first(missing, 8))} beside it"
        )
        raise WeightsError(f"{path} {what}; get all files of the model")
    return tuple(path.parent / name for name in names)


def indexed_names(path: Path) -> set[str]:
    """Return names of all tensors that an index promises; empty where `path` has none."""
    if path.is_dir():
        path = next((path / n for n in WEIGHTS if (path / n).is_file()), path)
    return set(_json(path)["weight_map"]) if path.name.endswith(INDEX) else set()


def read_hub(path: Path) -> HubFolder | None:
    """Return what the folder at `path`, or around the file `path`, states; None where it has no config.json of a model.

    Raises:
        UnsupportedModelError: a model or a preprocessing that a Program cannot be.
        WeightsError: files that cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    if not is_hub(folder):
        return None
    config = _json(folder / "config.json")
    name, licence = _name(folder), _license(folder)
    if isinstance(config.get("architecture"), str):
        inner = config.get("pretrained_cfg")
        facts = inner if isinstance(inner, dict) else config
        _check_timm(config, facts, folder / "config.json")
        return HubFolder(
            name=name,
            kind="timm",
            architecture=config["architecture"],
            config={**config, "pretrained_cfg": facts},
            preprocessing=None,
            labels=_timm_labels(config),
            license=licence or str(facts.get("license") or ""),
        )
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None
    if kind not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"{folder} holds a transformers model of type {kind!r}; known are {', '.join(MODEL_TYPES)}"
        )
    tower = config
    if kind == "clip":
        inner = config.get("vision_config")
        tower = {**config, **inner} if isinstance(inner, dict) else config
    _check_sizes(tower, folder / "config.json", lists=("image_size", "patch_size"))
    size = _pair(tower.get("image_size", 224), folder / "config.json")
    return HubFolder(
        name=name,
        kind=kind,
        architecture="",
        config=tower,
        preprocessing=_preprocessing(folder, kind, size),
        labels=_labels(config),
        license=licence,
    )


def _check_timm(config: Mapping[str, Any], facts: Mapping[str, Any], file: Path) -> None:
    """Hold what is read of a config.json of timm's against the types that it has there; what is left away is null."""
    arguments = config.get("model_args")
    if not isinstance(arguments, dict | None):
        raise WeightsError(f"{file} states model_args {strict_json.shown(arguments)}, expected a table")
    _check_sizes(arguments or {}, file, lists=tuple(_SIZES))
    for key in ("mean", "std"):
        if facts.get(key) is not None:
            _three(facts[key], key, file)
    kinds: Mapping[str, tuple[type, ...]] = {
        **dict.fromkeys(("interpolation", "crop_mode", "tag", "license"), (str,)),
        "crop_pct": (int, float),
    }
    for key, allowed in kinds.items():
        if facts.get(key) is not None and not isinstance(facts[key], allowed):
            raise WeightsError(f"{file} states {key} {strict_json.shown(facts[key])}, expected {allowed[-1].__name__}")


def _check_sizes(config: Mapping[str, Any], file: Path, *, lists: Collection[str]) -> None:
    """Hold sizes against their limits; those of `lists` may be lists or tables of them."""
    for key, limit in _SIZES.items():
        stated = config.get(key)
        values = [stated]
        if key in lists and isinstance(stated, dict | list):
            values = [*stated.values()] if isinstance(stated, dict) else stated
        for value in values:
            if stated is not None and not (type(value) is int and 0 <= value <= limit.value):
                raise WeightsError(
                    f"{file} states {key} {strict_json.shown(value)}, allowed: 0 to {limit} ({limit.of})"
                )
    for key, most in (("mlp_ratio", 64), ("layer_norm_eps", 1)):
        stated = config.get(key)
        if stated is not None and not (isinstance(stated, int | float) and 0 < stated <= most):
            raise WeightsError(f"{file} states {key} {strict_json.shown(stated)}, allowed: above 0, to {most}")


def _preprocessing(folder: Path, kind: str, size: tuple[int, int]) -> Preprocessing:
    file = folder / "preprocessor_config.json"
    settings = _json(file) if file.is_file() else None
    if settings is None and (folder / "processor_config.json").is_file():
        file = folder / "processor_config.json"
        inner = _json(file).get("image_processor")
        settings = inner if isinstance(inner, dict) else None
    if settings is None:
        (mean, std), crop, interpolation, mode = _RELEASED[kind]
        return Preprocessing(
            size=size,
            mean=_three(mean, "image_mean", file),
            std=_three(std, "image_std", file),
            crop_pct=crop,
            interpolation=interpolation,
            crop_mode=mode,
            assumed=True,
        )
    return read_preprocessor(settings, file, square=kind in ("vit", "vit_msn", "vit_mae", "deit"))


def read_preprocessor(settings: Mapping[str, Any], file: Path, *, square: bool) -> Preprocessing:
    """Return an image processor of transformers as a resize, a centre crop and a normalisation.

    `square` says what a bare number as size means to this processor: both sides, or the short one. Its centre crop
    rounds down where the rest is odd, ours to even as torchvision does: one pixel of the resized image at most.

    Raises:
        UnsupportedModelError: steps that are none of these.
    """

    def refuse(what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{file} {what}, which cannot be kept; state a resize, a centre crop and a mean")

    if not settings.get("do_resize", True):
        raise refuse("turns resizing off (do_resize)")
    for step in ("do_pad", "do_thumbnail", "do_reduce_labels", "offset", "rescale_offset"):
        if settings.get(step):
            raise refuse(f"asks for {step}")
    size, short = settings.get("size"), 0
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        short = _whole(size["shortest_edge"], file)
    elif isinstance(size, int) and not square:
        short = _whole(size, file)
    elif isinstance(size, Mapping) and set(size) != {"height", "width"}:
        raise refuse(f"states the size {strict_json.shown(size)}")
    crop = settings.get("crop_size") if settings.get("do_center_crop", "crop_size" in settings) else None
    if short and crop is None:
        raise refuse("resizes the short side and crops nothing")
    if short:
        out = _pair(crop, file)
        if out[0] != out[1]:
            raise refuse(f"crops {out[0]} x {out[1]} after resizing the short side")
        resized = (short, short)
    else:
        resized = _pair(size, file)
        out = resized if crop is None else _pair(crop, file)
        if out[0] * resized[1] != out[1] * resized[0]:
            raise refuse(f"crops {out[0]} x {out[1]} from {resized[0]} x {resized[1]}")
    mean, std = _normalisation(settings, file)
    resample = settings.get("resample")
    if not isinstance(resample, int) or resample not in _FILTERS:
        raise refuse(f"states resample {strict_json.shown(resample)} (allowed: 0 to 5)")
    return Preprocessing(
        size=out,
        mean=mean,
        std=std,
        crop_pct=crop_share(out[0], resized[0]),
        interpolation=_FILTERS[resample],
        crop_mode="center" if short else "squash",
    )


def crop_share(crop: int, resized: int) -> float:
    """Return the `crop_pct` with which `floor(crop / crop_pct)` is `resized`."""
    share = crop / resized
    while math.floor(crop / share) < resized:
        share = math.nextafter(share, 0)
    return share


def _normalisation(
    settings: Mapping[str, Any], file: Path
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std on pixels in 0..1: `(pixel * factor - mean) / std` with another factor is one with other ones."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        mean = _three(settings.get("image_mean"), "image_mean", file)
        std = _three(settings.get("image_std"), "image_std", file)
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or factor <= 0:
        raise WeightsError(f"{file} states rescale_factor {strict_json.shown(factor)}, allowed: a number above 0")
    scale = 255.0 * factor
    if math.isclose(scale, 1.0, rel_tol=1e-6):  # 0.00392156862745098 as files write it
        return mean, std
    return _three([m / scale for m in mean], "image_mean", file), _three([s / scale for s in std], "image_std", file)


def _three(value: Any, name: str, file: Path) -> tuple[float, float, float]:
    fits = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value)
    if not fits:
        raise WeightsError(f"{file} states {name} {strict_json.shown(value)}, expected three numbers")
    return float(value[0]), float(value[1]), float(value[2])


def _pair(value: Any, file: Path) -> tuple[int, int]:
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return _whole(value["height"], file), _whole(value["width"], file)
    if isinstance(value, list | tuple) and len(value) == 2:
        return _whole(value[0], file), _whole(value[1], file)
    return _whole(value, file), _whole(value, file)


def _whole(value: Any, file: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limits.IMAGE_SIDE.value:
        raise WeightsError(f"{file} states the size {strict_json.shown(value)}, expected 1 to {limits.IMAGE_SIDE}")
    return value


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return class names of `id2label`; none where they are transformers' placeholders."""
    table = config.get("id2label")
    if not isinstance(table, Mapping) or set(table) != {str(i) for i in range(len(table))}:
        return ()
    names = tuple(_label(table[str(i)]) for i in range(len(table)))
    return () if all(re.fullmatch(r"LABEL_\d+", n) for n in names) else names


def _label(stated: Any) -> str:
    if not isinstance(stated, str | int | float):
        raise WeightsError(f"config.json states the class name {strict_json.shown(stated)}, expected text")
    return str(stated)


def _timm_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names, words = config.get("label_names"), config.get("label_descriptions")
    if not isinstance(names, list):
        return ()
    words = words if isinstance(words, Mapping) else {}
    return tuple(_label(words.get(n, n) if isinstance(n, str) else n) for n in names)


def _name(folder: Path) -> str:
    """Return the model's name in the hub, or the folder's, as letters, digits, dots, dashes and underscores."""
    resolved = folder.resolve()
    cached = [part.rpartition("--")[2] for part in resolved.parts if part.startswith("models--")]
    return re.sub(r"[^\w.-]", "_", cached[-1] if cached else resolved.name, flags=re.ASCII) or "model"


def _license(folder: Path) -> str:
    """Return the licence in the head of the folder's README.md, '' where it states none."""
    try:
        text = limits.read_regular(folder / "README.md", limits.TEXT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return ""
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        data = strict_json.parse(limits.read_regular(path, limits.DOCUMENT_BYTES).removeprefix(codecs.BOM_UTF8))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); get the file again") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}, expected a table; get the file again")
    return data
