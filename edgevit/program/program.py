"""`Program`: the value between the torch side and the numpy side, and its folder on disk.

A Program is a `ProgramSpec` and named float32 arrays. Linear weights are `[in, out]` (x @ weight + bias). LayerScale is
folded into `proj` and `fc2`, class token and position embedding into `stem.prefix` and `stem.pos`.
On disk: `program.json` and `weights.safetensors` (float32 or, if asked for, float16 storage).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from edgevit.errors import OutputError, ProgramError
from edgevit.program.intake import check_safetensors
from edgevit.program.spec import CLASS_NUMBERS, BranchSpec, ProgramSpec, shift_name
from edgevit.program.tokens import merge_faults
from edgevit.util import atomic, limits, strict_json
from edgevit.util.notebook import Shown
from edgevit.util.paths import is_file

SCHEMA = 1
STORED = ("F32", "F16", "F64")  # types of arrays in a Program's safetensors
Storage = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class Program(Shown):
    """A model as data. `weights` are float32 and read-only; use `dataclasses.replace` or `with_weights` to derive."""

    spec: ProgramSpec
    weights: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        check_spec(self.spec)
        arrays = {}
        for name, value in self.weights.items():
            array = np.ascontiguousarray(value, dtype=np.float32)
            if array is value and array.flags.writeable:
                array = array.view()
            array.flags.writeable = False
            arrays[name] = array
        faults = _shape_faults(self.spec, arrays)
        if faults:
            raise ProgramError(
                f"Program {strict_json.shown(self.spec.name)} is inconsistent:\n  "
                + "\n  ".join(strict_json.first(faults))
            )
        object.__setattr__(self, "weights", MappingProxyType(arrays))

    def with_weights(self, changed: Mapping[str, np.ndarray], spec: ProgramSpec | None = None) -> Program:
        """Return the same Program with some arrays replaced or added; arrays the new spec does not name are dropped."""
        spec = spec or self.spec
        names = expected_shapes(spec)
        merged = {**self.weights, **changed}
        return Program(spec=spec, weights={n: merged[n] for n in names if n in merged})


def check_spec(spec: ProgramSpec) -> None:
    """Raise ProgramError for a spec that no arrays could fit: impossible by itself, or beyond a limit."""
    faults = _spec_faults(spec)
    if faults:
        raise ProgramError(
            f"Program {strict_json.shown(spec.name)} is inconsistent:\n  " + "\n  ".join(strict_json.first(faults))
        )


def expected_shapes(spec: ProgramSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array a Program of this spec holds, in the order they are stored."""
    shapes: dict[str, tuple[int, ...]] = dict(_stem_shapes(spec))
    for branch in spec.branches:
        shapes.update(branch_shapes(spec, branch))
    shapes |= {shift_name(point): (spec.dim,) for point in spec.merges if point.shift}
    head = spec.head
    if head.norm:
        shapes |= {"head.norm.weight": (spec.dim,), "head.norm.bias": (spec.dim,)}
    pooled = spec.dim * _pooled_tokens(spec)
    if head.pooled_norm:
        shapes |= {"head.pooled_norm.weight": (pooled,), "head.pooled_norm.bias": (pooled,)}
    if head.linear:
        shapes |= {"head.weight": (pooled, head.classes), "head.bias": (head.classes,)}
    return shapes


def _pooled_tokens(spec: ProgramSpec) -> int:
    return spec.head.prefix if spec.head.pool == "prefix" else 1


def _stem_shapes(spec: ProgramSpec) -> dict[str, tuple[int, ...]]:
    stem, dim = spec.stem, spec.dim
    shapes: dict[str, tuple[int, ...]] = {}
    if stem.kind == "patch":
        inner = stem.patch * stem.patch * 3
    else:
        inner = 9 * stem.token_dim
        for index, width in ((1, 7 * 7 * 3), (2, 9 * stem.token_dim)):
            shapes.update(_t2t_shapes(f"stem.attention{index}", width, stem.token_dim, stem.kind == "t2t_performer"))
    shapes |= {"stem.weight": (inner, dim), "stem.bias": (dim,)}
    shapes |= {"stem.prefix": (stem.prefix, dim), "stem.pos": (spec.patches, dim)}
    if stem.norm:
        shapes |= {"stem.norm.weight": (dim,), "stem.norm.bias": (dim,)}
    return shapes


def _t2t_shapes(prefix: str, width: int, token_dim: int, performer: bool) -> dict[str, tuple[int, ...]]:
    """One T2T stage. `qkv` is q, k, v in this order whatever upstream's order is; a performer has features `w`."""
    shapes = {
        f"{prefix}.norm1.weight": (width,),
        f"{prefix}.norm1.bias": (width,),
        f"{prefix}.qkv.weight": (width, 3 * token_dim),
        f"{prefix}.qkv.bias": (3 * token_dim,),
        f"{prefix}.proj.weight": (token_dim, token_dim),
        f"{prefix}.proj.bias": (token_dim,),
        f"{prefix}.norm2.weight": (token_dim,),
        f"{prefix}.norm2.bias": (token_dim,),
        f"{prefix}.fc1.weight": (token_dim, token_dim),
        f"{prefix}.fc1.bias": (token_dim,),
        f"{prefix}.fc2.weight": (token_dim, token_dim),
        f"{prefix}.fc2.bias": (token_dim,),
    }
    if performer:
        shapes[f"{prefix}.w"] = (token_dim // 2, token_dim)
    return shapes


def branch_shapes(spec: ProgramSpec, branch: BranchSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of one branch, gate and skip rows included."""
    dim, name = spec.dim, branch.name
    shapes: dict[str, tuple[int, ...]] = {}
    if not branch.removed:
        shapes |= {f"{name}.norm.weight": (dim,), f"{name}.norm.bias": (dim,)}
        if branch.kind == "mhsa":
            shapes |= {f"{name}.qkv.weight": (dim, 3 * branch.width), f"{name}.qkv.bias": (3 * branch.width,)}
            if branch.qk_norm:
                for part in ("q_norm", "k_norm"):
                    shapes |= {f"{name}.{part}.weight": (branch.head_dim,), f"{name}.{part}.bias": (branch.head_dim,)}
            shapes |= {f"{name}.proj.weight": (branch.width, dim), f"{name}.proj.bias": (dim,)}
        else:
            shapes |= {f"{name}.fc1.weight": (dim, branch.units), f"{name}.fc1.bias": (branch.units,)}
            shapes |= {f"{name}.fc2.weight": (branch.units, dim), f"{name}.fc2.bias": (dim,)}
    if branch.gate is not None:
        shapes |= {f"{name}.gate.weight": (dim,), f"{name}.gate.bias": (1,)}
    if branch.skip:
        shapes[f"{name}.skip"] = (spec.stem.prefix + 1, dim)
    return shapes


def _spec_faults(spec: ProgramSpec) -> list[str]:
    """Return what is impossible in a spec by itself, whatever the arrays."""
    image, stem, head = spec.image, spec.stem, spec.head
    checks = [
        *_range_checks(spec),
        (stem.patch >= 1 and (stem.kind == "patch" or stem.patch == 16), f"stem.patch {stem.patch} is not possible"),
        (stem.kind == "patch" or (stem.token_dim >= 2 and stem.token_dim % 2 == 0), "stem.token_dim must be even"),
        (
            head.linear or head.classes == spec.dim * _pooled_tokens(spec),
            "classes of a headless model are its pooled row",
        ),
        (not spec.labels or len(spec.labels) == head.classes, f"{len(spec.labels)} labels for {head.classes} classes"),
    ]
    if head.pool == "prefix":
        fits = 1 <= head.prefix <= stem.prefix
        checks.append((fits, f"the head reads {head.prefix} of {stem.prefix} prefix tokens"))
    if stem.patch >= 1:
        sizes = (image.height, image.width)
        fits = all(s >= stem.patch and s % stem.patch == 0 for s in sizes)
        checks.append((fits, f"image {sizes[0]} x {sizes[1]} is no multiple of the patch size {stem.patch}"))
    faults = [text for holds, text in checks if not holds] + _origin_faults(spec)
    for branch in spec.branches:
        faults += _branch_faults(spec, branch)
    if len({b.name for b in spec.branches}) != len(spec.branches):
        faults.append("branch names repeat")
    return faults or merge_faults(spec)


def _range_checks(spec: ProgramSpec) -> list[tuple[bool, str]]:
    """Return whether each number of a spec is one that a model can have, and what to say if not."""
    image, stem, head = spec.image, spec.stem, spec.head
    counts = [
        ("dim", spec.dim, 1, limits.WIDTH),
        ("stem.patch", stem.patch, 1, limits.IMAGE_SIDE),
        ("stem.prefix", stem.prefix, 0, limits.WIDTH),
        ("stem.token_dim", stem.token_dim, 0, limits.WIDTH),
        ("head.prefix", head.prefix, 0, limits.WIDTH),
        ("head.classes", head.classes, 1, limits.CLASSES),
        ("image.height", image.height, 1, limits.IMAGE_SIDE),
        ("image.width", image.width, 1, limits.IMAGE_SIDE),
        ("branches", len(spec.branches), 0, limits.BRANCHES),
    ]
    numbers = [
        ("norm_eps", spec.norm_eps, limits.EPS),
        ("qk_norm_eps", spec.qk_norm_eps, limits.EPS),
        ("image.crop_pct", image.crop_pct, limits.CROP),
        *((f"image.mean[{i}]", mean, limits.MEAN) for i, mean in enumerate(image.mean)),
        *((f"image.std[{i}]", std, limits.STD) for i, std in enumerate(image.std)),
    ]
    for branch in spec.branches:
        name = f"branch {strict_json.shown(branch.name)}: "
        counts += [
            (f"{name}units_total", branch.units_total, 0, limits.WIDTH),
            (f"{name}head_dim", branch.head_dim, 1 if branch.kind == "mhsa" else 0, limits.WIDTH),
            (f"{name}heads x head_dim", branch.width, 0, limits.WIDTH),
        ]
        numbers += [(f"{name}scale", branch.scale, limits.SCALE)] if branch.kind == "mhsa" else []
        numbers += [(f"{name}threshold", branch.gate.threshold, limits.THRESHOLD)] if branch.gate else []
    checks = [
        (low <= value <= most.value, f"{what} is {value}, allowed: {low} to {most} ({most.of})")
        for what, value, low, most in counts
    ]
    checks += [(value in allowed, f"{what} is {value:g}, allowed: {allowed}") for what, value, allowed in numbers]
    if image.crop_pct in limits.CROP:
        resized = max(image.height, image.width) / image.crop_pct
        said = f"image.crop_pct {image.crop_pct:g} asks for {resized:.0f} pixels before the crop"
        checks.append((resized <= limits.IMAGE_SIDE.value, f"{said}, allowed for {limits.IMAGE_SIDE.said}"))
    return checks


def _origin_faults(spec: ProgramSpec) -> list[str]:
    """Return texts that are read as numbers where they are used: class numbers, and the original's answers."""
    texts = [("class_numbers", spec.origin[CLASS_NUMBERS], spec.head.classes)] if CLASS_NUMBERS in spec.origin else []
    evaluations = spec.original.evaluations if spec.original else ()
    texts += [(f"answers of {strict_json.shown(e.source)}", e.answers, e.images) for e in evaluations if e.answers]
    return [
        f"{what} is {strict_json.shown(text)}, expected {count} whole numbers"
        for what, text, count in texts
        if len(text.split()) != count or not re.fullmatch(r"\d{1,9}(?: \d{1,9})*", text, re.ASCII)
    ]


def _branch_faults(spec: ProgramSpec, branch: BranchSpec) -> list[str]:
    faults = []
    if not re.fullmatch(r"\w+", branch.name, re.ASCII):
        faults.append(f"branch name {strict_json.shown(branch.name)} must be letters, digits and underscores")
    if list(branch.kept) != sorted(set(branch.kept)) or any(not 0 <= k < branch.units_total for k in branch.kept):
        faults.append(f"{branch.name}: kept units must be increasing and below {branch.units_total}")
    if branch.gate is not None and branch.removed:
        faults.append(f"{branch.name} is removed and cannot have a gate")
    if branch.gate is not None and branch.gate.pool == "prefix" and spec.stem.prefix == 0:
        faults.append(f"{branch.name}: a gate on the class token needs one, and the stem has no prefix tokens")
    return faults


def _shape_faults(spec: ProgramSpec, arrays: Mapping[str, np.ndarray]) -> list[str]:
    shapes = expected_shapes(spec)
    faults = [f"missing array {name} {list(shape)}" for name, shape in shapes.items() if name not in arrays]
    faults += [f"unexpected array {name} {list(a.shape)}" for name, a in arrays.items() if name not in shapes]
    for name, array in arrays.items():
        if name in shapes and array.shape != shapes[name]:
            faults.append(f"{name} has shape {list(array.shape)}, expected {list(shapes[name])}")
        elif not np.isfinite(array).all():
            faults.append(f"{name} holds values that are not finite")
    return faults


def save_program(program: Program, folder: Path, *, storage: Storage = "float32", force: bool = False) -> None:
    """Write a Program as a folder, by rename: an interrupted save leaves what was there.

    Raises:
        OutputError: the folder exists and `force` is false, or is no Program, or the disk refuses.
    """
    refuse_existing(folder, force=force)
    document = {"schema": SCHEMA, "storage": storage, "spec": strict_json.to_data(program.spec)}
    arrays = {n: a.astype(storage) for n, a in program.weights.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic.scratch(folder.parent, folder.name) as staging:
            content = staging / "content"
            content.mkdir()
            content.chmod(0o755)
            (content / "program.json").write_text(strict_json.utf8(strict_json.dumps(document)), encoding="utf-8")
            (content / "weights.safetensors").write_bytes(save(arrays))
            atomic.install(staging, {"content": (folder, "program")}, replace=force)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def refuse_existing(folder: Path, *, force: bool) -> None:
    """Raise OutputError for what must not be replaced; to be asked before long work."""
    atomic.refuse_existing(folder, "program", force=force, word="--replace-program")


def load_program(folder: Path) -> Program:
    """Read a Program folder.

    Raises:
        ProgramError: no such folder, unreadable or inconsistent files, or another schema version.
    """
    try:
        document = strict_json.read_json(folder / "program.json")
        check_safetensors(folder / "weights.safetensors", STORED)
        arrays = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ProgramError(
            f"{folder} is not a readable Program ({error}); it needs program.json and weights.safetensors"
        ) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ProgramError(
            f"{folder}/program.json has schema {strict_json.shown(got)}; this edgevit reads schema {SCHEMA}"
        )
    faults: list[str] = []
    spec = strict_json.from_data(ProgramSpec, document.get("spec"), faults, "spec")
    if spec is None:
        raise ProgramError(f"{folder}/program.json has faults:\n  " + "\n  ".join(strict_json.first(faults)))
    return Program(spec=spec, weights=arrays)


def is_program(path: Path) -> bool:
    """Return whether `path` looks like a Program folder."""
    return is_file(path / "program.json")
