"""Targets: what a device can do and what edgevit chooses for it, read from TOML, each choice with its reason."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from edgevit.errors import TargetError
from edgevit.schema.int16_sums import Products
from edgevit.util import strict_json
from edgevit.util.limits import SETTINGS_BYTES, THREADS
from edgevit.util.resources import shipped
from edgevit.util.text import listed, read_toml

# Choices that a target file must give a reason for: a reader should learn why, not only what.
EXPLAINED = ("backend", "weight_bits", "activations", "inference_precision", "range_method", "smoothing", "threads")
# A name becomes part of a bundle's.
NAME, NAMED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"), "letters, digits, '.', '_' and '-', at most 100"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of device with one runtime.

    Attributes:
        name: what bundles and reports call it; of a shipped target the file's stem too, as given to `--target`.
        description: one sentence.
        backend: the runtime that runs the bundle, by its name in `edgevit.backends`.
        arch: machine name as `platform.machine()` gives it.
        isa: instruction sets the choices below count on, for the reader.
        requires_flags: CPU flags as /proc/cpuinfo names them, all needed; `a|b` means one of both.
        int8: whether Linears are quantized at all.
        weight_bits: bits of the weights' int8 range; 7 keeps two products in 16 bits where the CPU adds them there.
        activations: type of a quantized Linear's input.
        inference_precision: type of what stays float (bf16 where the runtime takes such a hint).
        range_method: how an activation's range is chosen from what calibration images show.
        percentile: percentile of absolute values kept by `percentile` (50..100).
        smoothing: SmoothQuant's alpha folded into LayerNorm and V (0 = off, at most 1).
        min_agreement: fraction of calibration images on which int8 must name the float model's class (verifier).
        max_top1_drop: fraction of top-1 that int8 may lose on labelled images (verifier).
        threads: threads a run uses; machine code is compiled for so many, and runs on fewer too.
        formats: files of the bundle's model, by the names that its runtime gives them.
        attention: type of the operands of attention's two products; int8 needs a runtime with such kernels and int8.
        cpu: the CPU that machine code is compiled for, as LLVM names it; None for a runtime that has its kernels ready.
        cc: the compiler of the C library that machine code becomes (default: the usual one of `arch` and `libc`).
        sysroot: the folder with the device's C library, for that compiler (default: where it looks by itself).
        libc: the device's C library: glibc, glibc-VERSION for one that is no newer, musl or bionic (default: glibc).
        ram_mb: budget: most memory of the process, in MB of 10^6 bytes (None: not asked, as all budgets below).
        flash_mb: budget: most bytes of the files that the device loads, in MB.
        latency_ms: budget: most time of an image, at the 95th percentile, in ms.
        drop_points: budget: most points to lose against the original, of top-1 or without labels of agreement.
        int16_products: products that int8 kernels add in 16 bits before they widen the sum; above 2 weights are rounded
            so that no sum overflows, which needs 7 weight_bits, uint8 activations and a runtime with such kernels.
        reasons: why, per choice; EXPLAINED names those that are required.
    """

    name: str
    description: str
    backend: str
    arch: str
    isa: tuple[str, ...]
    requires_flags: tuple[str, ...]
    int8: bool
    weight_bits: Literal[7, 8]
    activations: Literal["uint8", "int8"]
    inference_precision: Literal["f32", "bf16"]
    range_method: Literal["minmax", "percentile", "mse"]
    percentile: float
    smoothing: float
    min_agreement: float
    max_top1_drop: float
    threads: int
    formats: tuple[str, ...]
    attention: Literal["float32", "int8"] = "float32"
    cpu: str | None = None
    cc: str | None = None
    sysroot: str | None = None
    libc: str | None = None
    ram_mb: float | None = None
    flash_mb: float | None = None
    latency_ms: float | None = None
    drop_points: float | None = None
    int16_products: Products = 2
    reasons: dict[str, str]


def list_targets(folder: Path | None = None) -> tuple[str, ...]:
    """Return names of the targets in `folder` (default: those that ship with edgevit), sorted."""
    return tuple(sorted(path.stem for path in (folder or shipped("targets")).glob("*.toml")))


def load_target(name_or_path: str | Path, refused: Callable[[Target], Sequence[str]] = lambda _: ()) -> Target:
    """Read a target by shipped name or by the path of a TOML file.

    `refused` adds the faults that only the target's runtime knows (`edgevit.backends.targets`).

    Raises:
        TargetError: the name is unknown (the nearest names are offered), or the file has faults (all are listed).
    """
    if str(name_or_path).endswith(".toml"):
        return _read(Path(name_or_path), refused)
    name, known = str(name_or_path), list_targets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        near = near or [each for each in known if difflib.get_close_matches(name, each.split("-"), n=1)]
        offer = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
        raise TargetError(
            f"unknown target {name!r}; {offer}. `edgevit targets` lists all; a path ending in .toml is read"
        )
    return _read(shipped("targets") / f"{name}.toml", refused)


def missing_flags(target: Target, cpu_flags: Collection[str]) -> tuple[str, ...]:
    """Return which of the target's required CPU flags a machine with `cpu_flags` lacks."""
    return tuple(need for need in target.requires_flags if not any(one in cpu_flags for one in need.split("|")))


def refusal(what: str, faults: Sequence[str]) -> TargetError:
    """Build the error for a target with these faults; `what` names it."""
    return TargetError(f"{what} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n{listed(faults)}")


def _read(path: Path, refused: Callable[[Target], Sequence[str]]) -> Target:
    try:
        data = read_toml(path, SETTINGS_BYTES)
    except FileNotFoundError:
        raise TargetError(f"target file {path} does not exist; `edgevit targets` lists the shipped names") from None
    except (OSError, ValueError) as error:
        raise TargetError(f"target file {path} cannot be read as TOML: {error}") from None
    faults: list[str] = []
    target = strict_json.from_data(Target, data, faults, "target")
    if target is not None:
        faults = [*_faults(target), *refused(target)]
    if target is None or faults:
        raise refusal(f"target file {path}", faults)
    return target


def _faults(target: Target) -> list[str]:
    """Return what types cannot say: ranges, and choices that contradict each other."""
    known = {f.name for f in fields(Target)}
    checks = (
        (bool(NAME.fullmatch(target.name)), f"name: got {strict_json.shown(target.name)}, allowed: {NAMED}"),
        (50 <= target.percentile <= 100, f"percentile: got {target.percentile}, allowed: 50 to 100"),
        (0 <= target.smoothing <= 1, f"smoothing: got {target.smoothing}, allowed: 0 (off) to 1"),
        (0 <= target.min_agreement <= 1, f"min_agreement: got {target.min_agreement}, allowed: 0 to 1"),
        (0 <= target.max_top1_drop <= 1, f"max_top1_drop: got {target.max_top1_drop}, allowed: 0 to 1"),
        (1 <= target.threads <= THREADS.value, f"threads: got {target.threads}, allowed: 1 to {THREADS.value}"),
        *(
            (
                getattr(target, key) is None or getattr(target, key) > 0,
                f"{key}: got {getattr(target, key)}, allowed: above 0",
            )
            for key in ("ram_mb", "flash_mb", "latency_ms")
        ),
        (0 <= (target.drop_points or 0) <= 100, f"drop_points: got {target.drop_points}, allowed: 0 to 100"),
        (
            target.int16_products == 2 or (target.weight_bits == 7 and target.activations == "uint8"),
            f"int16_products: got {target.int16_products} with {target.weight_bits} weight_bits and "
            f"{target.activations} activations, allowed: 2, and above it only with 7 bits and uint8",
        ),
        *((key in known, f"reasons: unknown key {key!r}, allowed: a key of the target") for key in target.reasons),
        *((bool(target.reasons.get(key, "").strip()), f"reasons: missing the reason of {key!r}") for key in EXPLAINED),
    )
    return [fault for held, fault in checks if not held]
